"""The result of one candidate."""

import dataclasses

from jaxtyping import PyTree


@dataclasses.dataclass(frozen=True)
class ComparisonRow:
    """The result of one candidate.

    - `name`: the candidate, as `wrappers` names it.
    - `trainable`: how many parameters train.
    - `losses`: the loss at every step, before the step's update.
    - `final_loss`: the mean loss over the last tenth of the steps.
    - `best_loss`: the smallest mean loss over a window of this length.
    - `milliseconds`: the median time of a step, without the first step; `None` if that is the only
        step.
    - `temp_bytes`: the temporary memory of the compiled step, without its arguments and results;
        `None` where the compiler does not report it.
    - `compile_seconds`: how long tracing and compiling the step took.
    - `learning_rate`: the best rate; `None` with your own optimiser, or if nothing trains.
    - `score`: the number that `score` returned for the trained model, or the first of its tuple.
    - `model`: the trained model, with its adapters.
    - `error`: why the candidate could not be trained. Then `name` is the only other field set.
    - `kept_error`: the mean error on `keep` after training; `None` without `keep`.
    """

    name: str
    trainable: int | None = None
    final_loss: float | None = None
    best_loss: float | None = None
    milliseconds: float | None = None
    temp_bytes: int | None = None
    compile_seconds: float | None = None
    learning_rate: float | None = None
    score: float | None = None
    losses: tuple[float, ...] = dataclasses.field(default=(), repr=False)
    model: PyTree = dataclasses.field(default=None, repr=False, compare=False)
    error: str | None = None
    kept_error: float | None = None
