"""Layers whose weight other layers read: output heads that are tied to an embedding."""

import collections
from collections.abc import Iterable
from typing import Any

import equinox as eqx
import jax
from jaxtyping import PyTree

from jno.lora import unwrap_lora
from jno.lora.extending import layers_at, modules_by_path

from .layouts import layout_of
from .untied import INNER, Untied, is_table

SHARED = (
    "other layers read its weight through eqx.nn.Shared, and PEFT adapts this layer alone. Let the "
    "other layer hold the weight"
)


class Ties:
    """Whether other layers read the weight of a layer of a model.

    A head that reads `embedding.weight` cannot be seen in a model, so the answer may be unknown.
    The first of these rules that applies decides:

    1. The embedding is in an `Untied`: not tied.
    2. `eqx.nn.Shared` hands the weight to other layers: tied.
    3. The caller says it.
    4. The model has the array a second time, not in an embedding, or a linear layer has the
       table's shape and no layer takes its outputs, so that it is the head: not tied.
    5. The model, or its `config`, has a `tie_word_embeddings`, as models of Hugging Face have.
    """

    def __init__(self, model: PyTree, given: bool | None = None):
        self._given = given
        plain = unwrap_lora(model)
        self._layers: dict[str, Any] = modules_by_path(plain)
        tables = collections.Counter(id(x.weight) for x in self._layers.values() if is_table(x))
        # How often the model has an array outside of embeddings.
        self._counts = collections.Counter(map(id, jax.tree.leaves(plain))) - tables
        self._plain = plain  # its arrays are known by their ids
        shared = [x for x in self._layers.values() if isinstance(x, eqx.nn.Shared)]
        self._shared = {id(x) for node in shared for x in jax.tree.leaves(node.get(node.pytree))}

    def of(self, path: str) -> bool | None:
        """Whether other layers read the weight of the layer at `path`; `None` if unknown."""
        layer = self._layers[path]
        if self.outer(path) != path:
            return False
        if self.is_shared(path):
            return True
        weight: Any = getattr(layer, "weight", None)
        if not is_table(layer):
            return False
        if self._given is not None:
            return self._given
        if self._counts[id(weight)] or self._has_head(*weight.shape):
            return False
        layers = self._layers.values()
        holders = [*layers, *(getattr(layer, "config", None) for layer in layers)]
        flags = [getattr(holder, "tie_word_embeddings", None) for holder in holders]
        flags = [flag for flag in flags if isinstance(flag, bool)]
        return any(flags) if flags else None

    def is_shared(self, path: str) -> bool:
        """Whether `eqx.nn.Shared` hands the weight of the layer at `path` to other layers."""
        return id(getattr(self._layers[path], "weight", None)) in self._shared

    def tables(self, shape: tuple[int, ...]) -> list[str]:
        """The paths of embeddings, also of `Untied`, with that shape that a head may read."""
        return [
            path
            for path, layer in self._layers.items()
            if (is_table(layer) and layer.weight.shape == shape and self.of(path) is not False)
            or (isinstance(layer, Untied) and layer.table.shape == shape)
        ]

    def is_untied(self, path: str) -> bool:
        return isinstance(self._layers.get(path), Untied)

    def outer(self, path: str) -> str:
        """The path of the `Untied` around the layer at `path`, or else `path` itself."""
        outer, _, field = path.rpartition("/")
        return outer if field == INNER and self.is_untied(outer) else path

    def _has_head(self, rows: int, size: int) -> bool:
        """Whether a linear layer must be the head: no layer takes its `rows` outputs.

        The layer between an MLP's two layers may have as many features as there are tokens.
        """
        layouts = [layout_of(layer) for layer in self._layers.values() if not is_table(layer)]
        linear = [lay for lay in layouts if lay is not None and lay.kind == "linear"]
        has_shape = any(lay.weight_shape == (rows, size) for lay in linear)
        return has_shape and not any(lay.inputs == rows for lay in linear)


def modules_at(model: PyTree, paths: Iterable[str]) -> dict[str, Any]:
    """The modules at these paths, also modules inside of modules."""
    wanted, modules = set(paths), {}
    while wanted:
        inner = {path for path in wanted if not wanted.isdisjoint(_parents(path))}
        modules |= layers_at(model, wanted - inner)
        wanted = inner
    return modules


def _parents(path: str) -> list[str]:
    keys = path.split("/") if path else []
    return ["/".join(keys[:length]) for length in range(len(keys))]
