"""The time to find adapters: imports, the first default, discovery, lists with broken plugins.

    python benchmarks/registry.py

Ratios are medians over interleaved runs in fresh processes; the fake distributions are real
`*.dist-info` folders in a temporary directory.
"""

import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

ROUNDS = 9

PLUGIN = """
import equinox as eqx
from jno.lora import LoRAWrapper, hookimpl
{body}
class Adapter{n}(LoRAWrapper):
    adapter_fields = ("delta",)
    base: eqx.Module
    delta: object
    rank: int = eqx.field(static=True)
    alpha: float = eqx.field(static=True)
    @classmethod
    def applies_to(cls, leaf): return False
    def __init__(self, base, rank, alpha, *, key): ...
    def __call__(self, x): ...
    def merge(self): ...
@hookimpl
def jno_lora_wrappers(): return [Adapter{n}]
"""

LISTING = """
import time, warnings
import jax, equinox, jno.lora
warnings.simplefilter("ignore")
start = time.perf_counter()
records = jno.lora.registered()
print(time.perf_counter() - start)
print([r.status for r in records if r.distribution.startswith("fake")].count("failed"))
print(len(records))
"""

FIRST_DEFAULT = """
import sys, jax, equinox as eqx
from jno.lora import Net
before = set(sys.modules)
Net(eqx.nn.Linear(8, 8, key=jax.random.key(0))).lora(rank=2)
print(sorted({m.split(".")[0] for m in set(sys.modules) - before if "jno" in m}))
"""


def run(code, *paths):
    """The output of `code` in a fresh process."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True
    )
    return done.stdout.split("\n")


def seconds(code):
    """How long a fresh process runs `code`."""
    start = time.perf_counter()
    run(code)
    return time.perf_counter() - start


def fake(folder, number, body="", *, entry_point=True):
    """Write a distribution, with or without a plugin."""
    info = folder / f"fake_{number}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: fake-{number}\nVersion: 1.0\n")
    if entry_point:
        (info / "entry_points.txt").write_text(f"[jno.lora]\np{number} = fake_plugin_{number}\n")
        (folder / f"fake_plugin_{number}.py").write_text(PLUGIN.format(n=number, body=body))


def main():
    """Print every figure."""
    pairs = [
        (seconds("import jax, equinox"), seconds("import jax, equinox, jno.lora"))
        for _ in range(ROUNDS)
    ]
    ratio = statistics.median(ours / theirs for theirs, ours in pairs)
    print(f"import jno.lora over import jax, equinox: {ratio:.3f}x")
    print(f"imported by the first net.lora(): {run(FIRST_DEFAULT)[0]}")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for number in range(300):
            fake(folder, number, entry_point=False)
        times = [float(run(LISTING, folder)[0]) for _ in range(ROUNDS)]
        print(f"listing, 300 more distributions: {statistics.median(times) * 1e3:.0f} ms")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for number in range(20):
            fake(folder, number, "raise RuntimeError" if number % 4 == 0 else "")
        outputs = [run(LISTING, folder) for _ in range(ROUNDS)]
        times = [float(output[0]) for output in outputs]
        print(
            f"listing, 20 more plugins of which {outputs[0][1]} fail ({outputs[0][2]} in all): "
            f"{statistics.median(times) * 1e3:.0f} ms"
        )


if __name__ == "__main__":
    main()
