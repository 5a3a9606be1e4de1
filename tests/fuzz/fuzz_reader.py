"""Feeds the reader of adapter files with bytes that are guided by its coverage.

    pip install atheris
    python tests/fuzz/fuzz_reader.py -runs=100000 -max_len=4096

Not part of the test suite, which has a shorter one by hypothesis. Ends with a traceback at any
exception but `CheckpointError`, and when one input takes more than five seconds.
"""

import contextlib
import pathlib
import sys
import tempfile

import atheris
import equinox as eqx
import jax
import jax.numpy as jnp

from jno.lora import CheckpointError, apply_lora, save_adapters
from jno.lora.extending import Extension, save_extended
from jno_lora_zoo import LoRALinear

with atheris.instrument_imports(include=["jno.lora._checkpoint"]):
    for name in [name for name in sys.modules if name.startswith("jno.lora._checkpoint")]:
        del sys.modules[name]  # imported above without the instruments
    from jno.lora._checkpoint import read


def main() -> None:
    """Fuzz, beginning with two files that are in order: with and without an extension."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        seeds, file = pathlib.Path(folder, "seeds"), pathlib.Path(folder, "file")
        seeds.mkdir()
        model = [eqx.nn.Linear(3, 2, key=jax.random.key(0))]
        model = apply_lora(model, 1, key=jax.random.key(1), wrappers=LoRALinear)
        save_adapters(model, seeds / "whole", metadata={"nu": 0.05})
        extension = Extension("acme", "acme adapters", "acme.load", {"n": [1]}, {"d": jnp.ones(2)})
        save_extended(model, seeds / "extended", extension)

        def read_one(content: bytes) -> None:
            file.write_bytes(content)
            with contextlib.suppress(CheckpointError):
                read(file)

        atheris.Setup([*sys.argv, "-timeout=5", str(seeds)], read_one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
