"""The papers in `papers.bib`, which the first party's adapters cite."""

import functools
import importlib.resources
import re

from jno.lora import About


@functools.cache
def entries() -> dict[str, str]:
    """Every entry of `papers.bib`, by its number on arXiv or OpenReview."""
    file = importlib.resources.files("jno_lora_zoo") / "papers.bib"
    texts = re.findall(r"^@.*?^}", file.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return {re.findall(r"eprint = {(.+)}", text)[0]: text for text in texts}


def bibtex_of(*papers: str) -> str | None:
    """The BibTeX entries of papers, for `About(bibtex=...)`; `None` if there are no papers.

    **Arguments:** `papers`: numbers on arXiv or OpenReview.

    **Raises:** `KeyError` for a number that `papers.bib` does not hold.
    """
    return "\n".join(entries()[paper] for paper in papers) or None


def cited(*papers: str, **facts: str) -> About:
    """The facts about one of our adapters: its first paper as `paper`, and all BibTeX entries.

    **Arguments:** `facts`: `family`, `formula` and `cost`, as in `About`.

    **Raises:** `KeyError` for a number that `papers.bib` does not hold.
    """
    return About(paper=papers[0], bibtex=bibtex_of(*papers), **facts)
