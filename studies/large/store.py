"""Pretrain the two models, and store their weights: `python -m studies.large.store`."""

from .._families import FULL, store
from ._models import FNO, TRANSFORMER


def main() -> None:
    """Write both files, and print their sizes."""
    for family in (FNO, TRANSFORMER):
        file = store(family, FULL)
        print(f"wrote {file}, {file.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
