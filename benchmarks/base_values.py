"""The hashes of base values in files of adapters: speed of algorithms, cost of a save, memory.

    python -m benchmarks.base_values [--quick]

CRC-32, the checksum of the arrays in a file, is among the algorithms.

The model has 16 linear layers in float32, 1 GiB together (with `--quick`, 1 MiB). Times are the
processor's.
"""

import argparse
import hashlib
import pathlib
import resource
import tempfile
import time
import zlib
from typing import Any

import equinox as eqx
import jax
import numpy as np

from jno.lora import apply_lora, load_adapters, save_adapters

ALGORITHMS = ("sha256", "sha512", "sha3_256", "blake2b", "blake2s", "sha1", "md5")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a small model, to check that it runs")
    width = 128 if parser.parse_args().quick else 4096
    bits = np.random.default_rng(0).integers(0, 256, width * width * 4, np.uint8)
    for name in ALGORITHMS:
        seconds = best(lambda name=name: hashlib.new(name, bits.data).digest())
        print(f"{name:9} {len(bits) / seconds / 1e9:.2f} GB/s")

    print(f"crc32     {len(bits) / best(lambda: zlib.crc32(bits.data)) / 1e9:.2f} GB/s")
    keys = jax.random.split(jax.random.key(0), 16)
    model = [eqx.nn.Linear(width, width, use_bias=False, key=key) for key in keys]
    adapted = jax.block_until_ready(apply_lora(model, 8, key=jax.random.key(1)))
    size = sum(layer.weight.nbytes for layer in model)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "file"
        save_adapters(adapted, path, base_values=False)  # imports libraries
        took("save without hashes", lambda: save_adapters(adapted, path, base_values=False))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        seconds = took("save, the first time", lambda: save_adapters(adapted, path))
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        took("save, again", lambda: save_adapters(adapted, path))
        took("load, the same arrays", lambda: load_adapters(model, path))
        copied: Any = jax.block_until_ready(jax.tree.map(lambda a: a.copy(), model))
        took("load, other arrays", lambda: load_adapters(copied, path, strict="values"))
    print(f"{size / 2**30:.3g} GiB of layers: {size / seconds / 1e9:.2f} GB/s")
    print(f"the peak of memory grew by {max(after - before, 0) / 2**10:.0f} MiB")


def best(function: Any) -> float:
    """The fewest seconds of three calls."""
    return min(seconds_of(function) for _ in range(3))


def took(label: str, function: Any) -> float:
    """Print and return the seconds of one call."""
    seconds = seconds_of(function)
    print(f"{label:22} {seconds:.3f} s")
    return seconds


def seconds_of(function: Any) -> float:
    """The processor's seconds in a call, because other programs may run meanwhile."""
    begin = time.process_time()
    function()
    return time.process_time() - begin


if __name__ == "__main__":
    main()
