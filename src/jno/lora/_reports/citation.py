"""The papers of a model's adapters, as BibTeX."""

import inspect
import itertools
import re

from jaxtyping import PyTree

from .._contract.checks import expect_model
from .._contract.matrix_adapter import Composite
from .._contract.wrapper import LoRAWrapper
from .._tree import adapted_layers

_BIBTEX_ENTRY = re.compile(r"^[ \t]*(?=@)", re.MULTILINE)


def citation(model: PyTree) -> str:
    """The BibTeX entries of the adapters in `model`, each once, in the order of the model.

    The entries come from the `about` of the adapters' classes (`About.bibtex`). An adapter with
    only a `paper` gets a comment with the arXiv number, and an adapter without a reference a
    comment that states this. A sum of adapters has the entries of its members.

    **Arguments:** `model`, any pytree, adapted or not.

    **Returns:** text for a `.bib` file; empty if there are no adapters.

    **Raises:** `SelectionError` if `model` is a `Net` or a set.
    """
    expect_model(model, "citation")
    unique: dict[str, None] = {}  # in the order of the model, which a set loses
    classes = dict.fromkeys(type(adapter) for _, adapter in adapted_layers(model))
    for cls in dict.fromkeys(itertools.chain(*map(_cited, classes))):
        if cls.about.bibtex is not None:
            entries = map(inspect.cleandoc, _BIBTEX_ENTRY.split(cls.about.bibtex))
        elif cls.about.paper is not None:
            entries = [f"% {cls.__name__}: arXiv:{cls.about.paper}"]
        else:
            entries = [f"% {cls.__name__}: no reference"]
        unique |= dict.fromkeys(filter(None, entries))
    return "\n\n".join(unique) + "\n" if unique else ""


def _cited(cls: type[LoRAWrapper]) -> list[type[LoRAWrapper]]:
    """The classes to cite: of a composite, its members and itself if it has a paper."""
    if not issubclass(cls, Composite):
        return [cls]
    members = itertools.chain(*(_cited(member.wrapper) for member in cls.members))
    return [*members, cls] if cls.about.paper else [*members]
