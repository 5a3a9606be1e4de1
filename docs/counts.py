"""Counts the manual: words, pages, and pages that are too long.

`python docs/counts.py` prints the counts; with `--check` it fails above the limits, and so does
the strict build of the site, of which this file is a hook. The manual is `docs/*.md` and
`docs/examples/*.md`, without the pages of methods, the evidence and the reference.
"""

import logging
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
REFERENCE = {
    *("api.md", "checks.md", "models.md", "directory.md", "design.md", "errors.md"),
    *("what-changed.md", "releasing.md", "changelog.md"),
}
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
        found.append(f"the manual: {total:,} words, limit {WORDS:,}: move measurements to evidence")
    if len(words) > PAGES:
        found.append(f"the manual: {len(words)} pages, limit {PAGES}: merge pages")
    return found + [
        f"docs/{page}: {number:,} words, limit {WORDS_OF_A_PAGE:,}: shorten or split it"
        for page, number in words.items()
        if number > WORDS_OF_A_PAGE
    ]


def on_pre_build(config: Any) -> None:
    """Warns of each limit that the manual exceeds, which fails a strict build."""
    for failure in failures(count()):
        logging.getLogger("mkdocs.hooks.counts").warning(failure)


def main() -> int:
    """Prints the counts and what exceeds a limit; with `--check`, 1 if anything does."""
    words = count()
    total, long = sum(words.values()), sum(n > WORDS_OF_A_PAGE for n in words.values())
    print(f"{total:,} words, {len(words)} pages, {long} pages above {WORDS_OF_A_PAGE:,} words")
    found = failures(words)
    print(*found, sep="\n")
    return 1 if found and "--check" in sys.argv[1:] else 0


if __name__ == "__main__":
    sys.exit(main())
