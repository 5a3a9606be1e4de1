"""Run the study on the four tasks, or write its section of the page."""

from dataclasses import replace

from .._command import command
from .._families import QUICK
from ..conditional._runs import run
from ._report import AGAIN_RESULTS, PLAN, write_page


def main(arguments: list[str] | None = None) -> None:
    """The command `python -m studies.again`."""
    quick = replace(QUICK, pool=16, samples=(8,), batch=8)
    command(
        "again",
        "task/method/samples",
        arguments,
        run=run,
        plans=(PLAN, replace(PLAN, effort=quick, files=())),
        results=AGAIN_RESULTS,
        write_page=write_page,
    )


if __name__ == "__main__":
    main()
