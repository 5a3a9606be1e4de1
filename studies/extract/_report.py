"""The verdicts and the table of the study, for `docs/evidence/combining.md`."""

import pathlib
import statistics
from collections.abc import Iterator
from dataclasses import dataclass

from .._pages import DOCS, fill, filled, percent
from .._records import Record, read
from ._runs import PLAN, WHOLE, Plan

LARGEST_RATIO, LEAST_KEPT = 1.1, 0.5


@dataclass(frozen=True)
class Cell:
    """A task with a number of simulations, and one rank: means of test errors over the seeds."""

    task: str
    samples: int
    rank: int
    untouched: float
    full: float
    lora: float
    extracted: float
    with_leftovers: float
    energy: float
    trained: int
    total: int

    @property
    def kept(self) -> float:
        """The fraction of the full fine-tune's gain that the extracted adapter keeps."""
        return (self.untouched - self.extracted) / (self.untouched - self.full)


def cells(records: list[Record], plan: Plan = PLAN) -> Iterator[Cell]:
    """The settings that have all seeds."""
    names = ("problem", "samples", "way", "rank", "leftovers", "seed")
    by_name = {tuple(record[name] for name in names): record for record in records}
    for problem in plan.problems:
        for samples in plan.effort.samples:
            for rank in plan.ranks:
                ways = [
                    (WHOLE, None, None),
                    (f"lora {rank}", None, None),
                    (WHOLE, rank, "drop"),
                    (WHOLE, rank, "keep"),
                ]
                runs = [
                    [by_name.get((problem.name, samples, *way, seed)) for way in ways]
                    for seed in range(plan.effort.seeds)
                ]
                if all(None not in seed for seed in runs):
                    full, lora, dropped, kept = zip(*runs, strict=True)
                    yield Cell(
                        task=problem.title,
                        samples=samples,
                        rank=rank,
                        untouched=_mean(full, "untouched"),
                        full=_mean(full, "test"),
                        lora=_mean(lora, "test"),
                        extracted=_mean(dropped, "test"),
                        with_leftovers=_mean(kept, "test"),
                        energy=_mean(dropped, "energy"),
                        trained=dropped[0]["trained"],
                        total=full[0]["trained"],
                    )


def _mean(runs: tuple[Record, ...], key: str) -> float:
    return statistics.fmean(run[key] for run in runs)


def write_page(results: pathlib.Path, docs: pathlib.Path = DOCS) -> pathlib.Path:
    """Fill the marked section of `combining.md`, and return the page's path."""
    records = read(results)
    done, page = [*cells(records)], docs / "combining.md"
    parts = (verdicts(done), table(done), denied(done), completeness(records, done))
    fill(page, {"extract": "\n".join(parts)})
    return page


def verdicts(done: list[Cell]) -> str:
    """The three parts of the goal."""
    last, middle = PLAN.ranks[-1], PLAN.ranks[1]
    ratios = [cell.extracted / cell.full for cell in done if cell.rank == last]
    kept = [cell.kept for cell in done if cell.rank == middle]
    wins = [cell.extracted <= cell.lora for cell in done]
    clauses = [
        (
            [ratio <= LARGEST_RATIO for ratio in ratios],
            f"Rank {last} has at most {LARGEST_RATIO} times the error of the full fine-tune: "
            f"{max(ratios, default=0):.2f} at most",
        ),
        (
            [fraction >= LEAST_KEPT for fraction in kept],
            f"Rank {middle} keeps at least half of the gain: {min(kept, default=0):.0%} at least",
        ),
        (wins, "The extracted adapter has at most the error of the LoRA that trained at its rank"),
    ]
    return "".join(
        f"* **{_status(met)}.** {text}, met in {sum(met)} of {len(met)} cells.\n"
        for met, text in clauses
    )


def _status(met: list[bool]) -> str:
    return "Open" if not met else "Met" if all(met) else "Not met"


def denied(done: list[Cell]) -> str:
    """What the numbers say against extracting instead of training."""
    sentences: list[str] = []
    for rank in PLAN.ranks:
        ratios = [cell.extracted / cell.lora for cell in done if cell.rank == rank]
        if ratios:
            sentences.append(
                f"At rank {rank}, the extracted adapter has {min(ratios):.2f} to {max(ratios):.2f} "
                "times the error of the LoRA that trained."
            )
    if done:
        worst = min(done, key=lambda cell: cell.kept)
        sentences.append(
            f"The energy of an update is not its gain: {worst.energy:.0%} of the energy kept "
            f"{worst.kept:.0%} of the gain ({worst.task}, {worst.samples} simulations, rank "
            f"{worst.rank})."
        )
    return filled(" ".join(sentences))


def table(done: list[Cell]) -> str:
    """A row for each setting and rank."""
    header = ["task", "simulations", "rank", "trained", "energy", "untouched", "full fine-tune"]
    header += ["extracted", "kept", "extracted, with leftovers", "LoRA trained"]
    lines = [f"| {' | '.join(header)} |", "|---|" + "--:|" * (len(header) - 1)]
    for c in done:
        errors = (f"{c.untouched:.4f}", f"{c.full:.4f}", f"{c.extracted:.4f}", f"{c.kept:.0%}")
        others = (f"{c.with_leftovers:.4f}", f"{c.lora:.4f}")
        sizes = (percent(c.trained / c.total), f"{c.energy:.0%}")
        row = (c.task, str(c.samples), str(c.rank), *sizes, *errors, *others)
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def completeness(records: list[Record], done: list[Cell]) -> str:
    """How often the best learning rate was at an edge, and which rows are missing."""
    runs = [record for record in records if record["leftovers"] is None]
    count = sum(record["at_edge"] for record in runs)
    total = len(PLAN.problems) * len(PLAN.effort.samples) * len(PLAN.ranks)
    text = (
        f"The best of {len(PLAN.effort.rates)} learning rates was the lowest or the highest in "
        f"{count} of {len(runs)} runs."
    )
    if len(done) < total:
        text += f" {total - len(done)} of {total} rows do not have all seeds yet."
    return filled(text)
