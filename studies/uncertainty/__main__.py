"""Run the study, or write its tables."""

from dataclasses import replace

from .._command import command
from .._families import QUICK
from ._report import write_page
from ._runs import RESULTS, Plan, run


def main(arguments: list[str] | None = None) -> None:
    """The command `python -m studies.uncertainty`."""
    command(
        "uncertainty",
        "problem/way/samples/seed",
        arguments,
        run=run,
        plans=(Plan(), Plan(replace(QUICK, samples=(8,), batch=2))),
        results=RESULTS,
        write_page=write_page,
    )


if __name__ == "__main__":
    main()
