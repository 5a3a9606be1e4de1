"""Embeddings tied to an output head: detect ties, and separate the head from adapters.

In PEFT, an adapter on an embedding acts on lookups, but not on a tied head.
"""

import collections
from typing import Any, NoReturn, TypeGuard, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax.tree_util import KeyPath
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, PyTree

from jno.lora import SelectionError, unwrap_lora
from jno.lora.extending import expect_model, modules_by_path, nearest, path_str, show_path
from jno_lora_zoo import plain_layer

from .layouts import layout_of

M = TypeVar("M")

SHARED = (
    "other layers read its weight through eqx.nn.Shared, or a head may read it, and PEFT adapts "
    "this layer alone. Let the other layers hold the weight; if no head reads it, say tied=False"
)
# The field of `Untied` with the embedding.
INNER = "layer"


class Untied(eqx.Module):
    """An embedding for lookups, and the table that an output head reads.

    An adapter around `layer` changes only lookups, as PEFT does if the head is tied to the
    embedding. `merge_lora` leaves the head's table unchanged, so that the merged model computes the
    same.

    It is called like the embedding. Its `weight` can be indexed by ids (a lookup), and transposed
    or multiplied with a vector (as in heads).

    - `layer`: the embedding, plain or adapted.
    - `table`: the array that the head reads; initially the embedding's array itself.
    """

    layer: Any
    table: Any

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """A lookup."""
        return self.layer(*args, **kwargs)

    @property
    def num_embeddings(self) -> int:
        """The number of rows."""
        return self.table.shape[0]

    @property
    def embedding_size(self) -> int:
        """The size of a row."""
        return self.table.shape[1]

    @property
    def weight(self) -> "Table":
        """The table for models that read it: lookups include the adapter, products do not."""
        return Table(self.layer, self.table, self.table.dtype)


class Table(eqx.Module):
    """The weight of an `Untied`, for models that read their layers' weights."""

    layer: Any
    table: Any
    dtype: Any = eqx.field(static=True)

    def __getitem__(self, ids: Any) -> Array:
        """The rows for these ids, with the adapter."""
        is_number = isinstance(ids, int | np.integer) and not isinstance(ids, bool)
        if not is_number and not (is_array(ids) and jnp.issubdtype(ids.dtype, jnp.integer)):
            self._refuse()
        ids = jnp.asarray(ids)
        layer = jax.tree.map(lambda x: jnp.asarray(x) if is_array(x) else x, self.layer)
        rows = jax.vmap(layer)(ids.reshape(-1))
        return rows.reshape(*ids.shape, self.table.shape[1]).astype(self.dtype)

    def __matmul__(self, x: ArrayLike) -> Array:
        """The product of the head's table, without the adapter."""
        return self.T.T @ x

    @property
    def T(self) -> Array:
        return jnp.asarray(self.table, self.dtype).T

    mT = T

    @property
    def shape(self) -> tuple[int, ...]:
        return self.table.shape

    @property
    def ndim(self) -> int:
        return self.table.ndim

    def astype(self, dtype: DTypeLike) -> "Table":
        return Table(self.layer, self.table, jnp.dtype(dtype))

    def __len__(self) -> int:
        return self.table.shape[0]

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError(
            f"The table {self.shape} of an embedding has an adapter for lookups, which its head "
            "must not see, and this could be either. Write `weight[ids]` for a lookup, and "
            "`x @ weight.T` or `weight @ x` for a head. If no head reads the table, load the "
            "adapter with `load_peft(..., tied=False)`."
        )

    __iter__ = __array__ = __rmatmul__ = __jax_array__ = _refuse


def untie(model: M, path: str) -> M:
    """`model` with the embedding at `path` in an `Untied`, so that an adapter only affects lookups.

    The outputs stay the same. If the head is tied, you can then train the same adapter as PEFT with
    `target_modules=["embed_tokens"]`, and write it with `save_peft`.

    **Raises:** `SelectionError` unless `path` is a plain embedding.
    """
    expect_model(model, "untie")
    modules = modules_by_path(model)
    if not is_table(modules.get(path)):
        near = ", ".join(map(show_path, nearest(path, list(modules), n=3)))
        layer = type(modules[path]).__name__ if path in modules else f"not one of {near}, ..."
        raise SelectionError(
            f"The layer at {show_path(path)!r} is {layer}, and only a plain embedding can be "
            "untied. Call merge_lora or unwrap_lora first if it is adapted."
        )
    return with_untied(model, {path})


def with_untied(model: M, paths: set[str]) -> M:
    """`model` with the embeddings at `paths` untied."""

    def replace(keys: KeyPath, node: Any) -> Any:
        return Untied(node, node.weight) if path_str(keys) in paths and is_table(node) else node

    def is_leaf(keys: KeyPath, node: object) -> bool:
        return isinstance(node, eqx.Module) and path_str(keys) in paths

    return jtu.tree_map_with_path(replace, model, is_leaf=is_leaf, is_leaf_takes_path=True)


class Ties:
    """Whether other layers read the weight of a layer of a model.

    A head that reads `embedding.weight` cannot be detected in a model, so the answer may be
    unknown. The first rule that applies decides:

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
        self._plain = plain  # keeps its arrays alive, because their ids are used
        shared = [x for x in self._layers.values() if isinstance(x, eqx.nn.Shared)]
        self._shared = {id(x) for node in shared for x in jax.tree.leaves(node.get(node.pytree))}

    def of(self, path: str) -> bool | None:
        """Whether other layers read the weight of the layer at `path`; `None` if unknown."""
        layer = plain_layer(self._layers[path])
        if self.outer(path) != path:
            return False
        if self.is_shared(path):
            return True
        if not is_table(layer):
            return False
        if self._given is not None:
            return self._given
        if self._counts[id(layer.weight)] or self._has_head(*layer.weight.shape):
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
        """The paths of embeddings (also `Untied`) of that shape that a head may read."""
        return [
            path
            for path, layer in self._layers.items()
            if (is_table(layer) and layer.weight.shape == shape and self.of(path) is not False)
            or (isinstance(layer, Untied) and layer.table.shape == shape)
        ]

    def is_untied(self, path: str) -> bool:
        return isinstance(self._layers.get(path), Untied)

    def outer(self, path: str) -> str:
        """The path of the `Untied` around the layer at `path`, or `path` itself."""
        outer, _, field = path.rpartition("/")
        return outer if field == INNER and self.is_untied(outer) else path

    def _has_head(self, rows: int, size: int) -> bool:
        """Whether a linear layer must be the head, because no layer takes its `rows` outputs.

        An MLP's hidden layer may have as many features as there are tokens.
        """
        layouts = [layout_of(layer) for layer in self._layers.values() if not is_table(layer)]
        linear = [lay for lay in layouts if lay is not None and lay.kind == "linear"]
        has_shape = any(lay.weight_shape == (rows, size) for lay in linear)
        return has_shape and not any(lay.inputs == rows for lay in linear)


def is_table(layer: Any) -> bool:
    """Whether `layer` is one plain embedding."""
    if isinstance(layer, Untied | None) or not is_array(vars(layer).get("weight")):
        return False
    layout = layout_of(layer)
    return layout is not None and layout.kind == "embedding" and layer.weight.ndim == 2


def is_array(value: object) -> TypeGuard[jax.Array | np.ndarray]:
    """Whether `value` is an array, including NumPy arrays."""
    return isinstance(value, jax.Array | np.ndarray)
