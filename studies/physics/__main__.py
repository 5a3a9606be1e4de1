"""Run the study, or write its page."""

from .._command import command
from ._report import write_page
from ._runs import RESULTS, run
from ._tasks import FULL, QUICK


def main(arguments: list[str] | None = None) -> None:
    """The command `python -m studies.physics`."""
    command(
        "physics",
        "part/problem/way/by",
        arguments,
        run=run,
        plans=(FULL, QUICK),
        results=RESULTS,
        write_page=write_page,
    )


if __name__ == "__main__":
    main()
