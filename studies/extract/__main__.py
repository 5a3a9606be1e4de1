"""Run the study, or write its section of the page."""

from dataclasses import replace

from .._command import command
from .._families import QUICK
from ._report import write_page
from ._runs import PLAN, RESULTS, run


def main(arguments: list[str] | None = None) -> None:
    """The command `python -m studies.extract`."""
    command(
        "extract",
        "problem/way/samples/seed",
        arguments,
        run=run,
        plans=(PLAN, replace(PLAN, effort=QUICK)),
        results=RESULTS,
        write_page=write_page,
    )


if __name__ == "__main__":
    main()
