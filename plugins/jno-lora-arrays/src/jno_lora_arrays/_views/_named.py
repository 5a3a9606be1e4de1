"""Arrays whose axes have names, and products of them."""

import dataclasses
from functools import partial
from typing import Any

import jax.tree_util as jtu
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array

RANK = "Z"  # the name of the rank of a product


# Not an `eqx.Module`, whose attributes are slow to read.
@partial(jtu.register_dataclass, data_fields=["array"], meta_fields=["names"])
@dataclasses.dataclass(frozen=True)
class Named:
    """An array with a letter for each of its axes."""

    array: Any  # an `Array`; or its sharding, in a tree of these
    names: str

    def size(self, name: str) -> int:
        return self.array.shape[self.names.index(name)]

    def axes(self, names: str) -> list[int]:
        return [self.names.index(name) for name in names]

    def cast(self, dtype: DTypeLike) -> "Named":
        """In another dtype. Traces faster than `astype`."""
        return Named(lax.convert_element_type(self.array, dtype), self.names)

    def arranged(self, names: str) -> Array:
        """The array with its axes in this order, and an axis of size one for each missing name."""
        array = lax.transpose(self.array, self.axes(common(names, self.names)))
        missing = [axis for axis, name in enumerate(names) if name not in self.names]
        return lax.expand_dims(array, missing) if missing else array


def contract(a: Named, b: Named, names: str, precision: lax.PrecisionLike = None) -> Named:
    """The sum of `a b` over the axes that are not in `names`. Traces faster than `jnp.einsum`.

    A name that is in only one of the arrays, and not in `names`, must belong to an axis of size 1.
    So must a name that is in neither.
    """
    shared = common(a.names, b.names)
    batch, summed = common(shared, names), without(shared, names)
    numbers = ((a.axes(summed), b.axes(summed)), (a.axes(batch), b.axes(batch)))
    y = lax.dot_general(a.array, b.array, numbers, precision=precision)
    y_names = batch + without(a.names + b.names, shared)
    dropped = [axis for axis, name in enumerate(y_names) if name not in names]
    y = Named(lax.squeeze(y, dropped) if dropped else y, common(y_names, names))
    return Named(y.arranged(names), names)


def common(names: str, others: str) -> str:
    """The names that are also among the others."""
    return "".join(name for name in names if name in others)


def without(names: str, others: str) -> str:
    """The names that are not among the others."""
    return "".join(name for name in names if name not in others)
