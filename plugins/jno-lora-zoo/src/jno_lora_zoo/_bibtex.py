"""The papers that the first party's adapters cite, which `papers.bib` holds."""

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
    """The BibTeX entries of papers, for `About(bibtex=...)`; `None` without papers.

    **Arguments:** `papers`: numbers on arXiv or OpenReview.

    **Raises:** `KeyError` for a number that `papers.bib` does not hold.
    """
    return "\n".join(entries()[paper] for paper in papers) or None


def cited(*papers: str, **facts: str) -> About:
    """The facts about an adapter of ours: its `paper`, the first, and the entries of all papers.

    **Arguments:** `facts`: `family`, `formula` and `cost`, as in `About`.

    **Raises:** `KeyError` for a number that `papers.bib` does not hold.
    """
    return About(paper=papers[0], bibtex=bibtex_of(*papers), **facts)
