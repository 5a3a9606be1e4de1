"""Heads that are tied to an embedding, whose tensors PEFT writes a second time."""

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from .._errors import MisfitError
from .._names import HEAD, is_embedding
from ..files.config import Config
from ..files.tensors import Tensors
from ..model.ties import Ties


def tied_heads(config: Config, tensors: Tensors) -> Iterator[tuple[str, str]]:
    """The heads that PEFT tied by `ensure_weight_tying`, and the embedding that each repeats."""
    for embedding in tensors.modules if config.ties else ():
        adapter, saved = tensors.adapters.get(embedding, {}), tensors.plain.get(embedding, {})
        if "lora_embedding_A" in adapter:
            for module, factors in tensors.adapters.items():
                is_head = module.endswith(HEAD) or not config.is_target(module)
                if is_head and _has_transposed_shapes(factors, adapter):
                    yield module, embedding
        elif is_embedding(embedding) and "weight" in saved:
            for module, arrays in tensors.plain.items():
                if module == embedding or config.saves(module) or "weight" not in arrays:
                    continue
                if arrays["weight"].shape == saved["weight"].shape:
                    yield module, embedding


def check_head(config: Config, module: str, embedding: str, tensors: Tensors) -> None:
    """**Raises:** `MisfitError` if one table cannot serve the embedding and its head."""
    if module in tensors.plain:
        if not np.array_equal(tensors.plain[module]["weight"], tensors.plain[embedding]["weight"]):
            raise MisfitError(f"its weight differs from the weight of {embedding!r}, {_ONE_TABLE}")
        return
    if config.is_dora:
        raise MisfitError(f"PEFT scales its rows, and the columns of {embedding!r}, {_ONE_TABLE}")
    of_embedding, of_head = tensors.adapters[embedding], tensors.adapters[module]
    for name, transposed in _PAIRS:
        if not np.array_equal(of_embedding[transposed], of_head[name].T):
            raise MisfitError(f"its tensors differ from the tensors of {embedding!r}, {_ONE_TABLE}")
    scales = [(config.rank(name), config.alpha(name)) for name in (module, embedding)]
    if scales[0] != scales[1]:
        shown = " and ".join(f"rank {rank} with alpha {alpha:g}" for rank, alpha in scales)
        raise MisfitError(f"it and {embedding!r} have {shown}, {_ONE_TABLE}")


def heads_of_tables(
    config: Config, tensors: Tensors, ties: Ties, is_missing: Callable[[str], bool]
) -> dict[str, tuple[str, np.ndarray]]:
    """The heads with a saved weight that the model lacks: the embedding they read, the weight."""
    heads: dict[str, tuple[str, np.ndarray]] = {}
    for module, arrays in tensors.plain.items():
        is_head = module.endswith(HEAD) and config.saves(module) and [*arrays] == ["weight"]
        if is_head and is_missing(module):
            tables = ties.tables(arrays["weight"].shape)
            if len(tables) == 1:
                heads[module] = tables[0], arrays["weight"]
    return heads


_ONE_TABLE = (
    "but one table serves both in the model. Give the model a head of its own, with a weight that "
    "starts as the weight of the embedding"
)
# The factors of a linear layer, and the factors of an embedding that are the same transposed.
_PAIRS = (("lora_B.weight", "lora_embedding_A"), ("lora_A.weight", "lora_embedding_B"))


def _has_transposed_shapes(
    factors: Mapping[str, np.ndarray], of_embedding: Mapping[str, np.ndarray]
) -> bool:
    return all(
        name in factors
        and transposed in of_embedding
        and factors[name].T.shape == of_embedding[transposed].shape
        for name, transposed in _PAIRS
    )
