"""Draw a field with its band, and how many points intervals of each level hold.

    python -m studies.uncertainty.picture

Five adapters on Burgers' equation with 16 simulations, at the recorded rate.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from jno_lora_uncertainty import calibrate, folds

from .._drawing import GREY, STYLES, pyplot, save
from .._families import relative_errors
from .._pages import DOCS
from .._records import read
from ._problems import PROBLEMS
from ._report import at_best_rates
from ._runs import EFFORT, RESULTS, of_members, trained
from ._ways import ADAPTERS, WAYS

SAMPLES, SEED = 16, 0
_LEVELS = np.linspace(0.05, 0.95, 19)


def draw(path: pathlib.Path) -> None:
    """Train the ensemble, and write the figure."""
    (problem,) = (problem for problem in PROBLEMS if problem.name == "burgers")
    (way,) = (way for way in WAYS if way.name == ADAPTERS)
    chosen = at_best_rates(read(RESULTS))[problem.name, way.name, SAMPLES]
    rates = [record["rate"] for record in chosen if record["seed"] == SEED]
    if not rates:
        only = f"{problem.name}/{way.name}/{SAMPLES}/{SEED}"
        raise SystemExit(f"No record: python -m studies.uncertainty --only '{only}'")
    x, y = data = problem.training(SEED, SAMPLES)
    parts = folds(len(y), way.members, key=jax.random.key(SEED))
    ensemble = way.ensemble(problem, EFFORT, SEED, way.members)
    ensemble, _ = trained(ensemble, data, parts, EFFORT, rates[0], jax.random.key(SEED))
    fields, solutions = problem.test(EFFORT.test)
    mean, std, raw = of_members(calibrate(ensemble, x, y, parts), fields)

    plt = pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3), width_ratios=(1.6, 1))
    errors = relative_errors(mean, solutions)
    middle = int(jnp.argsort(errors)[len(errors) // 2])
    points = np.linspace(0, 1, problem.family.points, endpoint=False)
    (green, _), (blue, _), _ = STYLES
    half = 1.6449 * std[middle]
    ends = mean[middle] - half, mean[middle] + half
    left.fill_between(points, *ends, color=green, alpha=0.3, lw=0, label="interval of 90 %")
    left.plot(points, mean[middle], color=green, label="mean")
    left.plot(points, solutions[middle], "--", color=GREY, label="solution")
    left.set(xlabel="x", ylabel="u", title="the simulation with the median error")
    left.legend()
    for width, colour, label in ((std, green, "calibrated"), (raw, blue, "raw spread")):
        ratio = np.abs(solutions - mean) / np.maximum(width, 1e-12)
        held = [np.mean(ratio <= jax.scipy.stats.norm.ppf((1 + level) / 2)) for level in _LEVELS]
        right.plot(_LEVELS, held, color=colour, label=label)
        print(f"{label}: intervals of 50 % hold {100 * held[len(held) // 2]:.0f} % of the points")
    right.plot((0, 1), (0, 1), ":", color=GREY)
    right.set(xlabel="level of the interval", ylabel="points inside")
    right.legend()
    save(plt, figure, path)


if __name__ == "__main__":
    draw(DOCS.parent / "images/uncertainty.svg")
