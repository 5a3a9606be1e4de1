"""The conditional study again, on the two large models: `python -m studies.large.again`."""

from dataclasses import replace

from .._command import command
from .._families import QUICK
from ..conditional._runs import run
from ..conditional.again import write_page
from ._plans import AGAIN, AGAIN_RESULTS


def main(arguments: list[str] | None = None) -> None:
    """The command `python -m studies.large.again`."""
    quick = replace(QUICK, samples=(16,), pool=16, batch=4)
    command(
        "large.again",
        "task/method/samples",
        arguments,
        run=run,
        plans=(AGAIN, replace(AGAIN, effort=quick, files=())),
        results=AGAIN_RESULTS,
        write_page=lambda results: write_page(large_results=results),
    )


if __name__ == "__main__":
    main()
