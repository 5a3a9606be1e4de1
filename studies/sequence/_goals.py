"""The goals, written before the first run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ._ways import EACH, FULL, NULL, PLAIN, REPLAYED, SUM


@dataclass(frozen=True)
class Measures:
    """The measures of a way, means over the seeds. All errors are relative.

    - `final`: the mean error on all settings, the source included, after the last task.
    - `learned`: the mean error on each task right after its training.
    - `transfer`: GEM's backward transfer with `1 - error` as the accuracy: the mean over all
        settings before the last of the error right after the setting minus the error at the end.
    - `source_growth`: the source's error after the last task minus its error before the first.
    """

    final: float
    learned: float
    transfer: float
    source_growth: float


Goal = tuple[str, Callable[[Mapping[str, Measures]], tuple[float, float]]]

# Each goal is met if the first number is at most the second.
GOALS: tuple[Goal, ...] = (
    (
        "a sum of LoRAs raises the source's error by at most half as much as full fine-tuning",
        lambda ways: (ways[SUM].source_growth, ways[FULL].source_growth / 2),
    ),
    (
        "null-space LoRA raises the source's error by at most half as much as continued LoRA",
        lambda ways: (ways[NULL].source_growth, ways[PLAIN].source_growth / 2),
    ),
    (
        "LoRA with replay ends with at most 1.25 times the error of one LoRA per task",
        lambda ways: (ways[REPLAYED].final, 1.25 * ways[EACH].final),
    ),
    (
        "right after a task, LoRA has at most 1.25 times the error of full fine-tuning",
        lambda ways: (ways[PLAIN].learned, 1.25 * ways[FULL].learned),
    ),
    (
        "right after a task, null-space LoRA has at most 1.5 times the error of continued LoRA",
        lambda ways: (ways[NULL].learned, 1.5 * ways[PLAIN].learned),
    ),
)
