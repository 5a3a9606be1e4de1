"""The papers of the methods that a model uses, as BibTeX."""

import inspect
import re

from jaxtyping import PyTree

from .._contract import expect_model
from .._tree import adapted_layers

_ENTRY = re.compile(r"^[ \t]*(?=@)", re.MULTILINE)


def citation(model: PyTree) -> str:
    """The BibTeX entries of the adapters in `model`, each once, in the order of the model.

    The class attribute `bibtex` of an adapter holds its entries. An adapter that only names a
    `paper` gives a comment with the arXiv number; one without either, a comment that says so.

    **Arguments:** `model`, any pytree, adapted or not.

    **Returns:** text for a `.bib` file; empty if there are no adapters.

    **Raises:** `SelectionError` if `model` is a `Net` or a set.
    """
    expect_model(model, "citation")
    found: dict[str, None] = {}  # a set that keeps its order
    for _, node in adapted_layers(model):
        cls = type(node)
        if cls.bibtex is not None:
            entries = map(inspect.cleandoc, _ENTRY.split(cls.bibtex))
        elif cls.paper is not None:
            entries = [f"% {cls.__name__}: arXiv:{cls.paper}"]
        else:
            entries = [f"% {cls.__name__}: no reference"]
        found |= dict.fromkeys(filter(None, entries))
    return "\n\n".join(found) + "\n" if found else ""
