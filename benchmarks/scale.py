"""How time and memory grow with the number of layers, their depth, specs, plugins and wrappers.

    python -m benchmarks.scale [--quick] [--out DIRECTORY]

Each point is measured in a fresh process. Every operation runs once to warm up, because programs
compile once for any size. Then

- seconds: the median of some runs;
- calls: how many functions Python called, free of noise and of the processor's caches;
- memory: the peak of Python's and NumPy's memory beyond the memory before the call.

Prints a table, the growth of each operation along each axis, and writes `scale.json` and
`scale.svg`.
"""

import argparse
import dataclasses
import gc
import json
import math
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

OPERATIONS = ("find", "plan", "apply", "filter", "merge", "save", "load")


@dataclasses.dataclass(frozen=True)
class Point:
    """One point of a measurement: the size and depth of a model, and the number of specs.

    - `depth`: how many containers are around the innermost layer.
    - `plugins`, `wrappers`: how many third-party plugins there are, with how many adapters in all.
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
    """Measure every point, or a single point with `--point`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small points, to check that it runs")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("scale-output"))
    parser.add_argument("--point", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.point is not None:
        print(json.dumps(measured(Point(**json.loads(arguments.point)))))
        return
    print(f"{'':>16}" + "".join(f"{name:>11}" for name in OPERATIONS))
    records = []
    for point in points(arguments.quick):
        record = {**dataclasses.asdict(point), **in_fresh_process(point)}
        records.append(record)
        cells = (f"{record['seconds'][name] * 1e3:>8.1f} ms" for name in OPERATIONS)
        print(f"{point.axis:>9} {point.size:>6}", *cells, sep="", flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "scale.json").write_text(json.dumps(records, indent=1) + "\n")
    plot(records, arguments.out / "scale.svg")
    print_growth(records)


def in_fresh_process(point: Point) -> dict[str, Any]:
    """The result of `measured` in a fresh process in which the plugins are installed."""
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
    """Write a distribution with a plugin of `wrappers` adapters that claim no layer."""
    info = folder / f"scale_{number}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: scale-{number}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[jno.lora]\nmain = scale_plugin_{number}\n")
    code = PLUGIN.format(plugin=number, wrappers=wrappers)
    (folder / f"scale_plugin_{number}.py").write_text(code)


def model_of(point: Point) -> Any:
    """Layers in nested lists. All layers have the same numbers, to build them fast."""
    import equinox as eqx
    import jax

    layer = eqx.nn.Linear(16, 16, key=jax.random.key(0))
    copies = [jax.tree.map(lambda x: x.copy(), layer) for _ in range(point.layers)]
    # A chain with one layer on each level, as long as there are layers.
    node: Any = copies[point.depth :]
    for level in range(point.depth):
        node = [copies[level], node] if level < len(copies) else [node]
    return node


def measured(point: Point) -> dict[str, Any]:
    """The seconds, calls and MiB of each operation."""
    import jax

    from jno.lora import (
        apply_lora,
        load_adapters,
        lora_trainable_filter,
        merge_lora,
        plan_lora,
        save_adapters,
    )
    from jno.lora._registry.registry import Registry

    # JAX's tree functions recurse once per level, and Python limits the depth.
    sys.setrecursionlimit(max(sys.getrecursionlimit(), 20 * point.depth))
    model, key = model_of(point), jax.random.key(1)
    registry = Registry()
    wrappers = ["LoRALinear", "of-many"] if point.wrappers else None
    settings = {"wrappers": wrappers, "registry": registry}
    paths = [row.path for row in plan_lora(model, 2).wrapped]
    # Each spec takes one layer, and the last spec all remaining layers.
    specs = [{"target": f"^{path}$", "rank": 1 + n % 2} for n, path in enumerate(paths)]
    settings["specs"] = [*specs[: point.specs - 1], {"rank": 2}]
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
        return {
            quantity: {name: measure(run, point.rounds) for name, run in operations.items()}
            for quantity, measure in MEASURES.items()
        }


def seconds_of(run: Callable[[], Any], rounds: int) -> float:
    """The median seconds over some rounds, after a round to warm up."""
    import jax

    seconds = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        jax.block_until_ready(jax.tree.leaves(run()))
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def calls_of(run: Callable[[], Any], rounds: int) -> int:
    """How many functions one run calls: Python's, and functions of C that Python calls."""
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    gc.collect()
    gc.disable()  # finalisers of earlier garbage would count
    sys.setprofile(count)
    try:
        run()
    finally:
        sys.setprofile(None)
        gc.enable()
    return calls


def mib_of(run: Callable[[], Any], rounds: int) -> float:
    """The peak of memory in one run, with its result, over the memory before the run."""
    gc.collect()
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1] / 2**20
    finally:
        tracemalloc.stop()


MEASURES = {"seconds": seconds_of, "calls": calls_of, "mib": mib_of}


def growth(records: list[dict[str, Any]], axis: str, quantity: str, name: str) -> float:
    """The power of the size by which a value grows at the far end of an axis: 1 is linear."""
    *_, before, last = (record for record in records if record["axis"] == axis)
    ratio = last[quantity][name] / before[quantity][name]
    return math.log(ratio) / math.log(last["size"] / before["size"])


def print_growth(records: list[dict[str, Any]]) -> None:
    """The powers by which each operation grows between the two largest points of each axis."""
    for axis in dict.fromkeys(record["axis"] for record in records if record["size"] > 1):
        if sum(record["axis"] == axis for record in records) < 2:
            continue
        for quantity in MEASURES:
            powers = (f"{growth(records, axis, quantity, name):>8.2f}   " for name in OPERATIONS)
            print(f"{axis:>8} {quantity:>7}", *powers, sep="")


def plot(records: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Draw the measurements over sizes, one column per axis, on logarithmic scales."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "jno-lora"
    import matplotlib.pyplot as plt

    axes = list(dict.fromkeys(record["axis"] for record in records))
    figure, pictures = plt.subplots(
        len(MEASURES),
        len(axes),
        figsize=(4 * len(axes), 9),
        layout="constrained",
        sharex="col",
        sharey="row",
        squeeze=False,
    )
    for quantity, row in zip(MEASURES, pictures, strict=True):
        for axis, picture in zip(axes, row, strict=True):
            chosen = [record for record in records if record["axis"] == axis]
            sizes = [record["size"] for record in chosen]
            for name, marker in zip(OPERATIONS, "osD^v<>", strict=True):
                values = [record[quantity][name] for record in chosen]
                picture.loglog(sizes, values, f"{marker}-", markersize=3, label=name)
            picture.grid(which="both", alpha=0.25)
    for axis, picture in zip(axes, pictures[-1], strict=True):
        picture.set_xlabel(axis)
    for label, (first, *_) in zip(("seconds", "calls", "MiB"), pictures, strict=True):
        first.set_ylabel(label)
    lines, names = pictures[0][0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside lower center", ncols=len(names), frameon=False)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
