"""Adapters as functions of the viscosity: `python -m studies.large.conditional`."""

from dataclasses import replace

from .._command import command
from .._families import QUICK
from ..conditional._runs import run
from ._plans import CONDITIONAL, CONDITIONAL_RESULTS
from ._report import write_page


def main(arguments: list[str] | None = None) -> None:
    """The command `python -m studies.large.conditional`."""
    command(
        "large.conditional",
        "task/method/samples",
        arguments,
        run=run,
        plans=(
            CONDITIONAL,
            replace(CONDITIONAL, effort=replace(QUICK, samples=(16,), pool=16, batch=4)),
        ),
        results=CONDITIONAL_RESULTS,
        write_page=lambda results: write_page(conditional_results=results),
    )


if __name__ == "__main__":
    main()
