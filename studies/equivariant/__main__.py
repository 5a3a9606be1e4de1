"""Run the study, or write its page."""

from .._command import command
from ._report import write_page
from ._runs import FULL, QUICK, RESULTS, run


def main(arguments: list[str] | None = None) -> None:
    """The command `python -m studies.equivariant`."""
    command(
        "equivariant",
        "way/frames/seed",
        arguments,
        run=run,
        plans=(FULL, QUICK),
        results=RESULTS,
        write_page=write_page,
    )


if __name__ == "__main__":
    main()
