"""Counts the manual: words, pages, and pages that are too long.

`python docs/counts.py` prints the counts; with `--check` it fails above the limits. The manual is `docs/*.md` and
`docs/examples/*.md`, without the pages of methods, the evidence and the reference.
"""

import sys
from pathlib import Path

DOCS = Path(__file__).parent
REFERENCE = {"api.md", "checks.md", "models.md", "directory.md", "design.md", "errors.md"}
WORDS, PAGES, WORDS_OF_A_PAGE = 60_000, 45, 2_000


def count(docs: Path = DOCS) -> dict[str, int]:
    """The words of each page of the manual, as `wc -w` counts them."""
    pages = [page for page in sorted(docs.glob("*.md")) if page.name not in REFERENCE]
    pages += sorted((docs / "examples").glob("*.md"))
    return {
        page.relative_to(docs).as_posix(): len(page.read_text("utf-8").split()) for page in pages
    }


def failures(words: dict[str, int]) -> list[str]:
    """A line for each limit that the manual exceeds."""
    found = []
    if (total := sum(words.values())) > WORDS:
        found.append(
            f"the manual has {total:,} words, at most {WORDS:,} are allowed: move measurements to docs/evidence"
        )
    if len(words) > PAGES:
        found.append(f"the manual has {len(words)} pages, at most {PAGES} are allowed: merge pages")
    return found + [
        f"docs/{page} has {number:,} words, at most {WORDS_OF_A_PAGE:,} are allowed: shorten or split it"
        for page, number in words.items()
        if number > WORDS_OF_A_PAGE
    ]


def main() -> int:
    words = count()
    long = sum(number > WORDS_OF_A_PAGE for number in words.values())
    print(
        f"{sum(words.values()):,} words, {len(words)} pages, {long} pages above {WORDS_OF_A_PAGE:,} words"
    )
    found = failures(words)
    print(*found, sep="\n")
    return 1 if found and "--check" in sys.argv[1:] else 0


if __name__ == "__main__":
    sys.exit(main())
