"""The papers that the first party's adapters cite: the entries of `references.bib`."""

import importlib.resources
import re

_TEXT = importlib.resources.files("jno_lora_zoo").joinpath("references.bib").read_text("utf-8")

# By arXiv number. `jno.lora.citation` reads the class attribute `bibtex` of an adapter; a `Method`
# gets it from here, by its `paper`.
ENTRIES = {
    re.findall(r"eprint = \{(.*?)\}", entry)[0]: entry.strip() for entry in _TEXT.split("\n\n")
}


def bibtex_of(*numbers: str) -> str:
    """The BibTeX entries of these arXiv numbers.

    **Raises:** `KeyError` for a paper that `references.bib` lacks.
    """
    return "\n".join(ENTRIES[number] for number in numbers)
