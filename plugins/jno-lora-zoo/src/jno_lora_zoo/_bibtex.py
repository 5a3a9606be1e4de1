"""The papers that the first party's adapters cite, which `papers.bib` holds."""

import functools
import importlib.resources
import re
from typing import Any


@functools.cache
def entries() -> dict[str, str]:
    """Every entry of `papers.bib`, by its number on arXiv or OpenReview."""
    file = importlib.resources.files("jno_lora_zoo") / "papers.bib"
    texts = re.findall(r"^@.*?^}", file.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return {re.findall(r"eprint = {(.+)}", text)[0]: text for text in texts}


class _Entries:
    """A class attribute that reads `papers.bib` when somebody asks, not when it is imported."""

    def __init__(self, papers: tuple[str, ...]):
        self.papers = papers

    def __get__(self, instance: object, cls: Any) -> str | None:
        if not self.papers:
            return entries().get(str(cls.paper))
        return "\n".join(entries()[paper] for paper in self.papers)


def bibtex_of(*papers: str) -> Any:
    """The class attribute `bibtex`: the BibTeX entries of papers, `None` without an entry.

    **Arguments:** `papers`: numbers on arXiv or OpenReview; by default the class's `paper`.

    **Raises:** when it is read, `KeyError` for a number that `papers.bib` does not hold.
    """
    return _Entries(papers)
