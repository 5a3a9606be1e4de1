"""The papers that the first party's adapters cite, which `papers.bib` holds."""

import functools
import importlib.resources
import re


@functools.cache
def entries() -> dict[str | None, str]:
    """Every entry of `papers.bib`, by its number on arXiv or OpenReview."""
    file = importlib.resources.files("jno_lora_zoo") / "papers.bib"
    texts = re.findall(r"^@.*?^}", file.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return {re.findall(r"eprint = {(.+)}", text)[0]: text for text in texts}


def bibtex_of(*papers: str) -> str | None:
    """The BibTeX entries of papers, for `About(bibtex=...)`; `None` without papers.

    An adapter of a `Method` has the entry of its paper by default.

    **Arguments:** `papers`: numbers on arXiv or OpenReview.

    **Raises:** `KeyError` for a number that `papers.bib` does not hold.
    """
    return "\n".join(entries()[paper] for paper in papers) or None
