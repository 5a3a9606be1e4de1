"""Run the study, or write its page."""

from dataclasses import replace

from .._command import command
from .._families import QUICK
from ._report import write_page
from ._runs import RESULTS, Plan, run


def main(arguments: list[str] | None = None) -> None:
    """The command `python -m studies.conditional`."""
    effort = replace(QUICK, pool=16, samples=(8,), batch=8)
    command(
        "conditional",
        "task/method/samples",
        arguments,
        run=run,
        plans=(Plan(), Plan(effort=effort)),
        results=RESULTS,
        write_page=write_page,
    )


if __name__ == "__main__":
    main()
