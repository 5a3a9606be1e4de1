"""A step with an adapter over its floor, in bfloat16 beside float32.

    python -m benchmarks.half_precision [--quick]

The first table of `make bench` has the same model and floor: four `Linear(1024, 1024)`, or one for
OFT, batch 256. In bfloat16 the layers and the data are bfloat16, and the adapters float32.
Time is the processor's, of all threads, because other programs may run meanwhile. Its ratios are
formed within a round, in which every side has its turn in random order; the table shows medians and
quartiles.
"""

import argparse
import random
import time
from typing import Any

from ._cases import FLOOR, METHODS, OURS, mlp
from ._ratios import per_round
from ._tables import spread
from .sides import jax_train

VARIANTS = ("LoRA", "DoRA", "LoKr", "VeRA", "OFT", "IA3")


def main() -> None:
    """Measure everything and print it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small shapes, to check that it runs")
    quick = parser.parse_args().quick
    print("| | float32 | bfloat16 |\n|---|---|---|")
    for adapter in VARIANTS:
        ratios = [over_floor(adapter, dtype, quick) for dtype in ("float32", "bfloat16")]
        print(f"| {METHODS[adapter]} | {' | '.join(map(spread, ratios))} |", flush=True)


def over_floor(adapter: str, dtype: str, quick: bool) -> dict[str, Any]:
    """The ratio of the adapter's step to the floor's step."""
    case = mlp(adapter, layers=1 if adapter == "OFT" else 4)
    case["model"] |= {"dtype": dtype} | ({"width": 64} if quick else {})
    sides = {"ours": case | OURS, "floor": case | FLOOR}
    steps = {name: jax_train.build(side, "cpu").measures["step"] for name, side in sides.items()}
    calls = {name: max(1, round(0.15 / max(step(2), 1e-4))) for name, step in steps.items()}

    def turn(name: str) -> float:
        start = time.process_time()
        steps[name](calls[name])
        return (time.process_time() - start) / calls[name]

    order = lambda: random.sample(list(steps), len(steps))  # noqa: E731
    rounds = [{name: turn(name) for name in order()} for _ in range(2 if quick else 11)]
    return per_round(rounds)["floor"]


if __name__ == "__main__":
    main()
