"""One comparison: a case on all its sides, their rounds interleaved in random order."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ._ratios import of_facts, per_round
from ._workers import RequestFailedError, Worker, WorkerLostError

# Facts that are compared between sides; the remaining facts are only recorded.
COMPARED = ("temp", "forward temp", "flops", "trainable")
RECORDED = (*COMPARED, "traces", "energy", "steps", "accepted")


@dataclass(frozen=True)
class Settings:
    """How long to measure. Times are in seconds."""

    rounds: int = 15
    least_rounds: int = 5
    warmups: int = 2
    round_seconds: float = 0.12  # for one side's turn
    measure_seconds: float = 7.0
    build_timeout: float = 300.0
    round_timeout: float = 120.0


QUICK = Settings(rounds=3, least_rounds=2, warmups=1, round_seconds=0.05, measure_seconds=5.0)


@dataclass
class Side:
    """One side of a comparison. Sides of one environment share a process."""

    name: str
    environment: str
    case: dict[str, Any]
    status: str = "ok"
    facts: dict[str, Any] = field(default_factory=dict)
    measures: list[str] = field(default_factory=list)


class Comparison:
    """Runs a case.

    **Arguments:**

    - `case`: a dict of `benchmarks._cases`.
    - `start`: starts the worker of an environment, or returns `None` if it is not installed.
    - `settings`: how long to measure.
    - `rng`: decides the order of the sides.
    """

    def __init__(
        self,
        case: Mapping[str, Any],
        start: Callable[[str], Worker | None],
        settings: Settings,
        rng: random.Random,
    ):
        self.case, self.start, self.settings, self.rng = case, start, settings, rng
        self.workers: dict[str, Worker | None] = {}
        shared = {k: v for k, v in case.items() if k not in ("sides", "targets", "measures")}
        self.sides = {
            name: Side(name, spec["env"], {**shared, **spec})
            for name, spec in case["sides"].items()
        }

    def run(self) -> dict[str, Any]:
        """The record of this comparison: ratios and facts, no times."""
        ratios: dict[str, Any] = {}
        try:
            if not self.case.get("fresh"):
                self._build()
            for measure in self.case["measures"]:
                measured = per_round(self._rounds(measure))
                if measured:
                    ratios[measure] = measured
        finally:
            self._close()
        facts = {
            name: {fact: side.facts[fact] for fact in RECORDED if fact in side.facts}
            for name, side in self.sides.items()
        }
        compared = {
            name: {fact: v for fact, v in side_facts.items() if fact in COMPARED}
            for name, side_facts in facts.items()
        }
        copied = ("name", "group", "label", "note", "targets", "measures")
        return {
            **{key: self.case[key] for key in copied if key in self.case},
            "sides": {n: {"status": s.status, **facts[n]} for n, s in self.sides.items()},
            "ratios": {**ratios, **of_facts(compared)},
        }

    def _build(self) -> None:
        for side in self.sides.values():
            answer = self._ask(
                side,
                self.settings.build_timeout,
                **{"do": "build", "as": side.name, "case": side.case},
            )
            side.facts = answer.get("facts", {})
            side.measures = answer.get("measures", [])

    def _rounds(self, measure: str) -> list[dict[str, float]]:
        if self.case.get("fresh"):
            return [self._fresh_round(measure) for _ in range(self.settings.least_rounds)]
        calls, expected = {}, 0.0
        for name, side in self.sides.items():
            if side.status != "ok" or measure not in side.measures:
                continue
            seconds = None
            for _ in range(self.settings.warmups):
                seconds = self._time(side, measure, 1)
            if seconds is not None:
                calls[name] = max(1, min(500, round(self.settings.round_seconds / seconds)))
                expected += calls[name] * seconds
        if not calls.keys() > {"ours"}:
            return []
        affordable = int(self.settings.measure_seconds / max(expected, 1e-9))
        number = max(self.settings.least_rounds, min(self.settings.rounds, affordable))
        return [self._round(measure, calls) for _ in range(number)]

    def _fresh_round(self, measure: str) -> dict[str, float]:
        """A round in new processes, without warming up, to time the first call."""
        self._close()
        self._build()
        return self._round(measure, dict.fromkeys(self.sides, 1))

    def _round(self, measure: str, calls: Mapping[str, int]) -> dict[str, float]:
        order = list(calls)
        self.rng.shuffle(order)
        seconds = {name: self._time(self.sides[name], measure, calls[name]) for name in order}
        return {name: value for name, value in seconds.items() if value is not None}

    def _time(self, side: Side, measure: str, calls: int) -> float | None:
        request = {"do": "run", "as": side.name, "measure": measure, "calls": calls}
        timeout = self.case.get("timeout", self.settings.round_timeout)
        return self._ask(side, timeout, **request).get("seconds")

    def _ask(self, side: Side, timeout: float, **request: Any) -> dict[str, Any]:
        """The answer; if there is none, an empty dict, with the reason in the side's status."""
        if side.status != "ok":
            return {}
        if side.environment not in self.workers:
            self.workers[side.environment] = self.start(side.environment)
        worker = self.workers[side.environment]
        if worker is None:
            side.status = "not installed"
            return {}
        try:
            return worker.ask(timeout, **request)
        except RequestFailedError as failure:
            side.status = f"failed: {failure}"
        except WorkerLostError as loss:
            # All sides that share the process are lost.
            for lost_side in self.sides.values():
                if lost_side.environment == side.environment and lost_side.status == "ok":
                    lost_side.status = f"lost with {side.name}"
            side.status = str(loss)
        return {}

    def _close(self) -> None:
        for worker in self.workers.values():
            if worker is not None:
                worker.close()
        self.workers.clear()
