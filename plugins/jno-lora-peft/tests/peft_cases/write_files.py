"""Writes `files.tar.xz`: adapters as PEFT saves them, and what they compute in Torch.

.venv-peft/bin/python -m peft_cases.write_files    # from plugins/jno-lora-peft/tests
"""

import io
import tarfile
import tempfile
from pathlib import Path

from safetensors.numpy import save

from . import torch_side as torch
from .files import CASES

FILES = Path(__file__).with_name("files.tar.xz")


def main():
    contents = {"base.safetensors": save(torch.weights(torch.model()))}
    for case in CASES:
        theirs = torch.trained(torch.CASES[case])
        with tempfile.TemporaryDirectory() as folder, torch.quiet():
            theirs.save_pretrained(folder)
            for name in ("adapter_config.json", "adapter_model.safetensors"):
                contents[f"{case}/{name}"] = (Path(folder) / name).read_bytes()
        contents[f"{case}/outputs.safetensors"] = save(torch.outputs(theirs))
    with tarfile.open(FILES, "w:xz", preset=9) as archive:
        # Like by like compresses best.
        for name in sorted(contents, key=lambda name: (Path(name).name, name)):
            entry = tarfile.TarInfo(name)
            entry.size = len(contents[name])
            archive.addfile(entry, io.BytesIO(contents[name]))


if __name__ == "__main__":
    main()
