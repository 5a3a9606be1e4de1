"""The tensors that PEFT writes once more for a head that is tied to its embedding."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from ._config import Config
from ._files import Tensors
from ._names import HEAD, is_embedding
from ._ties import Ties
from ._updates import MisfitError


class Head(NamedTuple):
    """A head in a file, and the embedding whose tensors it has once more."""

    module: str
    embedding: str


def tied_heads(config: Config, found: Tensors) -> list[Head]:
    """The heads that PEFT has tied by `ensure_weight_tying`, which its settings do not name."""
    if not config.ties:
        return []
    heads: list[Head] = []
    for embedding in found.modules:
        adapted, saved = found.adapters.get(embedding, {}), found.plain.get(embedding, {})
        if "lora_embedding_A" in adapted:
            others = (name for name, parts in found.adapters.items() if _mirrors(adapted, parts))
            heads += [
                Head(name, embedding)
                for name in others
                if name.endswith(HEAD) or not config.is_target(name)
            ]
        elif is_embedding(embedding) and "weight" in saved:
            heads += [
                Head(name, embedding)
                for name, arrays in found.plain.items()
                if name != embedding
                and not config.saves(name)
                and "weight" in arrays
                and arrays["weight"].shape == saved["weight"].shape
            ]
    return heads


def check_head(config: Config, head: Head, found: Tensors) -> None:
    """**Raises:** `MisfitError` if one table cannot serve the embedding and its head."""
    module, embedding = head
    if module in found.plain:
        if not np.array_equal(found.plain[module]["weight"], found.plain[embedding]["weight"]):
            raise MisfitError(f"its weight is not that of {embedding!r}, {_ONE_TABLE}")
        return
    if config.variant == "dora":
        raise MisfitError(
            f"PEFT scales the rows of its weight, and the columns of that of {embedding!r}, "
            f"{_ONE_TABLE}"
        )
    parts, own = found.adapters[embedding], found.adapters[module]
    is_same = np.array_equal(parts["lora_embedding_A"], own["lora_B.weight"].T)
    if not is_same or not np.array_equal(parts["lora_embedding_B"], own["lora_A.weight"].T):
        raise MisfitError(f"its tensors are not those of {embedding!r}, {_ONE_TABLE}")
    scales = [(config.rank(name), config.alpha(name)) for name in (module, embedding)]
    if scales[0] != scales[1]:
        shown = " and ".join(f"rank {rank} with alpha {alpha:g}" for rank, alpha in scales)
        raise MisfitError(f"it and {embedding!r} have {shown}, {_ONE_TABLE}")


def heads_of_tables(
    config: Config, found: Tensors, ties: Ties, is_missing: Callable[[str], bool]
) -> dict[str, tuple[str, np.ndarray]]:
    """The heads with a saved weight that the model lacks: the embedding they read, the weight."""
    heads: dict[str, tuple[str, np.ndarray]] = {}
    for module, arrays in found.plain.items():
        is_head = module.endswith(HEAD) and config.saves(module) and [*arrays] == ["weight"]
        if is_head and is_missing(module):
            tables = ties.tables(arrays["weight"].shape)
            if len(tables) == 1:
                heads[module] = tables[0], arrays["weight"]
    return heads


_ONE_TABLE = (
    "but one table serves both in the model. Give the model a head of its own, with a weight that "
    "starts as that of the embedding"
)


def _mirrors(embedding: Mapping[str, np.ndarray], parts: Mapping[str, np.ndarray]) -> bool:
    """Whether the factors of a linear layer have the shapes of an embedding's, transposed."""
    pairs = (("lora_B.weight", "lora_embedding_A"), ("lora_A.weight", "lora_embedding_B"))
    return all(
        own in parts and other in embedding and parts[own].T.shape == embedding[other].shape
        for own, other in pairs
    )
