"""How time and memory grow with the number of layers, their depth, specs, plugins and wrappers.

    python -m benchmarks.scale [--quick] [--out DIRECTORY]

Each point is measured in a process of its own: every operation once to warm up (what is compiled is
compiled once, whatever the size), then the median of some runs. Memory is how much the process grew
at its largest, over what it held with JAX and the model loaded. Prints a table, and writes
`scale.json` and `scale.svg`.
"""

import argparse
import dataclasses
import json
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

OPERATIONS = ("find", "plan", "apply", "filter", "merge", "save", "load")


@dataclasses.dataclass(frozen=True)
class Point:
    """What is measured: a model of so many layers, so deep, adapted with so many specs.

    - `depth`: how many containers are around the innermost layer.
    - `plugins`, `wrappers`: how many are installed beside our own, and what they provide in all.
    """

    axis: str
    size: int
    layers: int = 100
    depth: int = 1
    specs: int = 1
    plugins: int = 0
    wrappers: int = 0
    rounds: int = 5


def points(quick: bool) -> list[Point]:
    """Every point, along one axis after the other."""
    if quick:
        return [
            *(Point("layers", n, layers=n, rounds=1) for n in (10, 30)),
            *(Point("depth", n, depth=n, rounds=1) for n in (10, 30)),
            *(Point("specs", n, layers=30, specs=n, rounds=1) for n in (1, 10)),
            Point("wrappers", 20, layers=10, plugins=2, wrappers=20, rounds=1),
        ]
    return [
        *(Point("layers", n, layers=n) for n in (10, 30, 100, 300, 1000, 3000, 10_000)),
        *(Point("depth", n, depth=n, rounds=3) for n in (10, 30, 100, 300, 1000, 2000)),
        *(Point("specs", n, layers=1000, specs=n) for n in (1, 3, 10, 30, 100, 300)),
        *(Point("wrappers", n, plugins=n // 10, wrappers=n) for n in (10, 30, 100, 300, 1000)),
    ]


def main() -> None:
    """Measure every point, or with `--point` one of them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small points: does it run?")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("scale-output"))
    parser.add_argument("--point", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.point is not None:
        print(json.dumps(measured(Point(**json.loads(arguments.point)))))
        return
    print(f"{'':>16}" + "".join(f"{name:>11}" for name in OPERATIONS) + f"{'MiB':>9}")
    records = []
    for point in points(arguments.quick):
        record = {**dataclasses.asdict(point), **in_its_own_process(point)}
        records.append(record)
        cells = (f"{record['seconds'][name] * 1e3:>8.1f} ms" for name in OPERATIONS)
        print(f"{point.axis:>9} {point.size:>6}", *cells, f"{record['peak_mib']:>8.1f}", sep="")
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "scale.json").write_text(json.dumps(records, indent=1) + "\n")
    plot(records, arguments.out / "scale.svg")


def in_its_own_process(point: Point) -> dict[str, Any]:
    """What `measured` returns, in a fresh process in which the plugins are installed."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for number in range(point.plugins):
            install(folder, number, point.wrappers // point.plugins)
        code = (
            f"import sys; sys.path.insert(0, {name!r}); sys.argv[1:] = ['--point', "
            f"{json.dumps(dataclasses.asdict(point))!r}]; "
            "from benchmarks.scale import main; main()"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{point} failed:\n{done.stderr}")
        return json.loads(done.stdout.splitlines()[-1])


PLUGIN = """
import equinox as eqx
from jno.lora import LoRAWrapper, hookimpl

def adapter(name):
    body = dict(
        __module__=__name__, __qualname__=name, adapter_fields=("delta",), variant="of-many",
        __annotations__=dict(base=eqx.Module, delta=object, rank=int, alpha=float),
        rank=eqx.field(static=True), alpha=eqx.field(static=True),
        applies_to=classmethod(lambda cls, leaf: False),
        __init__=lambda self, base, rank, alpha, *, key: None,
        __call__=lambda self, x: x, merge=lambda self: self.base,
    )
    return type(LoRAWrapper)(name, (LoRAWrapper,), body)

@hookimpl
def jno_lora_wrappers():
    return [adapter(f"Adapter{plugin}_{{n}}") for n in range({wrappers})]
"""


def install(folder: pathlib.Path, number: int, wrappers: int) -> None:
    """Write a distribution with a plugin that provides so many adapters, which claim nothing."""
    info = folder / f"scale_{number}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: scale-{number}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[jno.lora]\nmain = scale_plugin_{number}\n")
    code = PLUGIN.format(plugin=number, wrappers=wrappers)
    (folder / f"scale_plugin_{number}.py").write_text(code)


def model_of(point: Point) -> Any:
    """Layers in a list, the list in lists; the same numbers in all, which costs nothing."""
    import equinox as eqx
    import jax

    layer = eqx.nn.Linear(16, 16, key=jax.random.key(0))
    copies = [jax.tree.map(lambda x: x.copy(), layer) for _ in range(point.layers)]
    # One layer a level on the way down, as far as they go: a chain, not one layer at the bottom.
    node: Any = copies[point.depth :]
    for level in range(point.depth):
        node = [copies[level], node] if level < len(copies) else [node]
    return node


def measured(point: Point) -> dict[str, Any]:
    """Seconds of each operation, and by how many MiB the process grew."""
    import jax

    from jno.lora import (
        apply_lora,
        load_adapters,
        lora_trainable_filter,
        merge_lora,
        plan_lora,
        save_adapters,
    )
    from jno.lora._registry import Registry

    # JAX's tree functions call themselves for each level, and Python limits how deep.
    sys.setrecursionlimit(max(sys.getrecursionlimit(), 20 * point.depth))
    model, key = model_of(point), jax.random.key(1)
    registry = Registry()
    wrappers = ["LoRALinear", "of-many"] if point.wrappers else None
    settings = {"wrappers": wrappers, "registry": registry}
    paths = [row.path for row in plan_lora(model, 2).wrapped]
    # Each spec takes one layer, the last all that are left.
    own = [{"target": f"^{path}$", "rank": 1 + n % 2} for n, path in enumerate(paths)]
    settings["specs"] = [*own[: point.specs - 1], {"rank": 2}]
    before = peak_mib()
    adapted = apply_lora(model, key=key, **settings)
    with tempfile.TemporaryDirectory() as name:
        file = pathlib.Path(name) / "adapters.safetensors"
        operations: dict[str, Callable[[], Any]] = {
            "find": lambda: Registry().records(),
            "plan": lambda: plan_lora(model, **settings),
            "apply": lambda: apply_lora(model, key=key, **settings),
            "filter": lambda: lora_trainable_filter(adapted),
            "merge": lambda: merge_lora(adapted),
            "save": lambda: save_adapters(adapted, file),
            "load": lambda: load_adapters(model, file),
        }
        seconds = {name: seconds_of(run, point.rounds) for name, run in operations.items()}
    return {"seconds": seconds, "peak_mib": peak_mib() - before}


def seconds_of(run: Callable[[], Any], rounds: int) -> float:
    """The median over some rounds, after one to warm up."""
    import jax

    found = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        jax.block_until_ready(jax.tree.leaves(run()))
        found.append(time.perf_counter() - start)
    return statistics.median(found[1:])


def peak_mib() -> float:
    """The most that this process has held so far."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size / (2**20 if sys.platform == "darwin" else 2**10)


def plot(records: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Seconds and memory over sizes, an axis a column, all logarithmic: slope 1 is linear."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "jno-lora"
    import matplotlib.pyplot as plt

    axes = list(dict.fromkeys(record["axis"] for record in records))
    figure, pictures = plt.subplots(
        2,
        len(axes),
        figsize=(4 * len(axes), 6),
        layout="constrained",
        sharex="col",
        sharey="row",
        squeeze=False,
        height_ratios=(2, 1),
    )
    for axis, picture, memory in zip(axes, *pictures, strict=True):
        chosen = [record for record in records if record["axis"] == axis]
        sizes = [record["size"] for record in chosen]
        for name, marker in zip(OPERATIONS, "osD^v<>", strict=True):
            seconds = [record["seconds"][name] for record in chosen]
            picture.loglog(sizes, seconds, f"{marker}-", markersize=3, label=name)
        memory.loglog(sizes, [record["peak_mib"] for record in chosen], "k.-")
        memory.yaxis.set_major_formatter("{x:g}")
        memory.yaxis.set_minor_formatter("{x:g}")
        memory.set_xlabel(axis)
        for each in (picture, memory):
            each.grid(which="both", alpha=0.25)
    pictures[0][0].set_ylabel("seconds")
    pictures[1][0].set_ylabel("MiB")
    lines, names = pictures[0][0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside lower center", ncols=len(names), frameon=False)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
