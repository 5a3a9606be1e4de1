"""The study again on the two large models: `python -m studies.again.large`."""

from dataclasses import replace

from .._command import command
from .._families import QUICK
from ..conditional._runs import run
from ..large._plans import AGAIN, AGAIN_RESULTS
from ._report import write_page


def main(arguments: list[str] | None = None) -> None:
    """The command `python -m studies.again.large`."""
    quick = replace(QUICK, samples=(16,), pool=16, batch=4)
    command(
        "again.large",
        "task/method/samples",
        arguments,
        run=run,
        plans=(AGAIN, replace(AGAIN, effort=quick, files=())),
        results=AGAIN_RESULTS,
        write_page=lambda results: write_page(large_results=results),
    )


if __name__ == "__main__":
    main()
