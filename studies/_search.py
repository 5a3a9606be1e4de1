"""The search for learning rates, by the validation error."""

from collections.abc import Callable

Evaluate = Callable[[float, float], float]  # from a rate and a ratio to the validation error

FACTOR, EXTENSIONS = 3.0, 2


def best_rates(
    rate: float, ratio: float, evaluate: Evaluate, extensions: int = EXTENSIONS
) -> tuple[float, float]:
    """The best rate at `ratio`; then, unless `ratio` is 1, the best ratio at this rate."""
    rate = _best(rate, lambda rate: evaluate(rate, ratio), extensions)
    if ratio != 1:
        ratio = _best(ratio, lambda ratio: evaluate(rate, ratio), extensions)
    return rate, ratio


def _best(start: float, evaluate: Callable[[float], float], extensions: int) -> float:
    """The best of `start` and of its multiples by `FACTOR`.

    Three values are tried. While the best value is at an edge, the next value beyond is tried, at
    most `extensions` times.
    """
    errors = {number: evaluate(number) for number in _multiples(start, 0, 1, -1)}
    for _ in range(extensions):
        best = min(errors, key=errors.__getitem__)
        if min(errors) < best < max(errors):
            break
        (beyond,) = _multiples(best, 1 if best == max(errors) else -1)
        errors[beyond] = evaluate(beyond)
    return min(errors, key=errors.__getitem__)


def _multiples(number: float, *powers: int) -> list[float]:
    return [float(f"{number * FACTOR**power:.3g}") for power in powers]
