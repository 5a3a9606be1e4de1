"""Run the study, or write its page."""

from dataclasses import replace

from .._command import command
from .._families import QUICK
from ._report import write_page
from ._runs import PLAN, RESULTS, Plan, run


def main(arguments: list[str] | None = None) -> None:
    """The command `python -m studies.sequence`."""
    command(
        "sequence",
        "operator/way/seed",
        arguments,
        run=run,
        plans=(PLAN, Plan(effort=replace(QUICK, pool=8), extensions=0)),
        results=RESULTS,
        write_page=write_page,
    )


if __name__ == "__main__":
    main()
