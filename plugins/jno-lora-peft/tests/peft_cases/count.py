"""Counts how many files of PEFT load, of all types that the real PEFT has.

.venv-peft/bin/python -m peft_cases.count    # from plugins/jno-lora-peft/tests
"""

import tempfile

import peft

from jno.lora import PeftFormatError
from jno.lora.peft import load_peft
from jno_lora_peft.files.config import REASONS
from jno_lora_peft.types import TYPES

from . import told, torch_side as torch
from .twins import assert_close, outputs, twin


def check(ours, theirs, case):
    """**Raises:** `AssertionError` unless both compute the same."""
    if case in torch.ROUTED:
        expected = torch.routed_outputs(theirs, case, told.X, told.TASKS, told.TOKENS)
        told.assert_close(told.ours_of(ours, case), expected)
    else:
        assert_close(outputs(ours), torch.outputs(theirs))


def main():
    plain = twin(torch.weights(torch.model()))
    cases = (
        torch.CASES | torch.ROUTED | {name: config for name, (config, _) in torch.REFUSED.items()}
    )
    loaded: dict[str, list[str]] = {}
    refused: dict[str, list[str]] = {}
    for case, config in cases.items():
        theirs = torch.trained(config)
        with tempfile.TemporaryDirectory() as folder, torch.quiet():
            theirs.save_pretrained(folder)
            kind = str(theirs.peft_config["default"].peft_type.value)
            try:
                check(load_peft(plain, folder, tied=False), theirs, case)
                loaded.setdefault(kind, []).append(case)
            except PeftFormatError:
                refused.setdefault(kind, []).append(case)
    types = {kind.value for kind in peft.PeftType}
    assert types == TYPES.keys() | REASONS.keys(), types ^ (TYPES.keys() | REASONS.keys())
    for kind in sorted(types):
        files = [*loaded.get(kind, []), *(f"not {case}" for case in refused.get(kind, []))]
        print(f"{kind:24} {', '.join(files) or REASONS[kind]}")
    total = sum(map(len, loaded.values()))
    others = sum(map(len, refused.values())) + len(types - loaded.keys() - refused.keys())
    print(
        f"{len(loaded)} of {len(types)} types, {total} of {total + others} files load, none wrong"
    )


if __name__ == "__main__":
    main()
