"""Run the study, or write its page."""

from dataclasses import replace

from .._command import command
from .._families import QUICK
from ..operators._runs import run
from ._plans import PLAN
from ._report import RESULTS, write_page


def main(arguments: list[str] | None = None) -> None:
    """The command `python -m studies.large`."""
    command(
        "large",
        "problem/method/seed",
        arguments,
        run=run,
        plans=(PLAN, replace(PLAN, effort=QUICK)),
        results=RESULTS,
        write_page=write_page,
    )


if __name__ == "__main__":
    main()
