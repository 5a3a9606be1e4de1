"""An embedding beside the table that an output head reads: the head does not see the adapter."""

from typing import Any, NoReturn, TypeGuard, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array

from jno.lora import SelectionError
from jno.lora.extending import (
    expect_model,
    layers_at,
    modules_by_path,
    nearest,
    path_str,
    show_path,
)

from .layouts import layout_of

M = TypeVar("M")

# The field of `Untied` that holds the embedding.
INNER = "layer"


class Untied(eqx.Module):
    """An embedding that is looked up, and the table that an output head reads.

    An adapter around `layer` changes the lookups alone, as PEFT does on a model whose head is tied
    to its embedding. `merge_lora` leaves the head's table as it is, so that the merged model
    computes the same.

    It is called like the embedding, and its `weight` can be indexed by ids (a lookup) and be
    transposed or multiplied with a vector (as heads do).

    - `layer`: the embedding, plain or adapted.
    - `table`: the array that the head reads, at first the very array of the embedding.
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
        """The table as a model reads it: lookups see the adapter, products do not."""
        return Table(self.layer, self.table, self.table.dtype)


class Table(eqx.Module):
    """The weight of an `Untied`, for models that read the weights of their layers."""

    layer: Any
    table: Any
    dtype: Any = eqx.field(static=True)

    def __getitem__(self, ids: Any) -> Array:
        """The rows of these ids, with the adapter."""
        is_number = isinstance(ids, int | np.integer) and not isinstance(ids, bool)
        if not is_number and not (is_array(ids) and jnp.issubdtype(ids.dtype, jnp.integer)):
            _refuse(self, f"was indexed by {ids!r}")
        ids = jnp.asarray(ids)
        layer = jax.tree.map(lambda x: jnp.asarray(x) if is_array(x) else x, self.layer)
        rows = jax.vmap(layer)(ids.reshape(-1))
        return rows.reshape(*ids.shape, self.table.shape[1]).astype(self.dtype)

    def __matmul__(self, x: Any) -> Array:
        """The product of the head's table, without the adapter."""
        return self._plain @ x

    @property
    def T(self) -> Array:
        return self._plain.T

    mT = T

    @property
    def shape(self) -> tuple[int, ...]:
        return self.table.shape

    @property
    def ndim(self) -> int:
        return self.table.ndim

    @property
    def size(self) -> int:
        return self.table.size

    def astype(self, dtype: Any) -> "Table":
        return Table(self.layer, self.table, jnp.dtype(dtype))

    def __len__(self) -> int:
        return self.table.shape[0]

    def __iter__(self) -> Any:
        _refuse(self, "was iterated over")

    def __array__(self, *_: Any, **__: Any) -> Any:
        _refuse(self, "was made a NumPy array")

    def __rmatmul__(self, x: Any) -> Any:
        _refuse(self, "was multiplied from the left")

    def __jax_array__(self) -> Any:
        _refuse(self, "was read as a whole")

    @property
    def _plain(self) -> Array:
        return jnp.asarray(self.table, self.dtype)


def untie(model: M, path: str) -> M:
    """`model` with its embedding at `path` as an `Untied`: an adapter then acts on lookups alone.

    The outputs stay the same. On a model with a tied head, it lets you train the same adapter as
    PEFT with `target_modules=["embed_tokens"]`; `save_peft` then writes it for PEFT.

    **Raises:** `SelectionError` unless there is a plain embedding.
    """
    expect_model(model, "untie")
    layer = layers_at(model, [path]).get(path)
    if layer is None:
        near = ", ".join(map(show_path, nearest(path, list(modules_by_path(model)), n=3)))
        raise SelectionError(f"The model has no layer {path!r}; the nearest are {near}.")
    if not is_table(layer):
        raise SelectionError(
            f"The layer at {show_path(path)!r} is a {type(layer).__name__}, and only a plain "
            "embedding can be untied. Call merge_lora or unwrap_lora first if it is adapted."
        )
    return with_untied(model, {path})


def with_untied(model: M, paths: set[str]) -> M:
    """`model` with the embeddings at `paths` untied."""

    def replace(keys: Any, node: Any) -> Any:
        return Untied(node, node.weight) if path_str(keys) in paths and is_table(node) else node

    def is_leaf(keys: Any, node: Any) -> bool:
        return isinstance(node, eqx.Module) and path_str(keys) in paths

    return jtu.tree_map_with_path(replace, model, is_leaf=is_leaf, is_leaf_takes_path=True)


def is_table(layer: Any) -> bool:
    """Whether `layer` is one plain embedding."""
    if isinstance(layer, Untied) or not is_array(vars(layer).get("weight")):
        return False
    layout = layout_of(layer)
    return layout is not None and layout.kind == "embedding" and layer.weight.ndim == 2


def is_array(value: Any) -> TypeGuard[jax.Array | np.ndarray]:
    """Whether `value` is an array, of NumPy too."""
    return isinstance(value, jax.Array | np.ndarray)


def _refuse(table: Table, use: str) -> NoReturn:
    raise TypeError(
        f"The table {table.shape} of an embedding {use}. Its lookups carry an adapter that its "
        "output head must not see, and this could be either. Write `weight[ids]` for a lookup, and "
        "`x @ weight.T` or `weight @ x` for a head. If no head reads this table, load the adapter "
        "with `load_peft(..., tied=False)`."
    )
