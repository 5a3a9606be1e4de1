"""What the methods have in common: the law, and when the fast path may stand for it."""

import abc
import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import AbstractArray, Array, Float

from jno.lora import LoRAWrapper, WrapperError

from ._layer_kind import LayerKind, at_least_float32, compute_dtype


class Method(LayerKind):
    """One paper: its arrays, its law `W -> W'`, and the fast way to compute `W' x`.

    The law is the definition. `forward` must equal it, and is used where the layer's own
    `__call__` is known to be `W x + b`; every other layer is called with the law's weight in it.
    """

    @abc.abstractmethod
    def law(self, W: Float[Array, "out in"]) -> Float[Array, "out in"]:
        """The adapted matrix `W'`, for the matrix `W` of `base`."""

    @abc.abstractmethod
    def forward(self, x: Any) -> Array:
        """`W' x` by the operations of the layer kind."""

    def has_fast_path(self) -> bool:
        """Whether `forward` computes the law for this layer. Decided by static facts only."""
        return True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The adapted layer's output, for the arguments that the layer itself takes."""
        only_input = len(args) == 1 and kwargs.keys() <= {"key"} and self.accepts(args[0])
        if only_input and self.is_known(self.base) and self.has_fast_path():
            return self.finish(self.forward(args[0]))
        return self.merge()(*args, **kwargs)  # pyright: ignore[reportCallIssue]

    def partition_specs(self) -> dict[str, PartitionSpec]:
        """The axes called `out` and `in` in a field's annotation lie as the weight's do."""
        axes = self.mesh_axes(self.base)
        by_name = {"out": axes.outputs, "in": axes.inputs}
        return {
            field.name: PartitionSpec(*axes.stack, *map(by_name.get, field.type.dim_str.split()))
            for field in dataclasses.fields(self)
            if isinstance(field.type, type) and issubclass(field.type, AbstractArray)
        }

    def merge(self) -> eqx.Module:
        """The base layer with the law's weight, computed in float32 at least."""
        return self.with_matrix(self.base, self.law(self.matrix(self.base)))


class Scaled(Method):
    """A method whose update is multiplied by a number that depends on `alpha` and the rank.

    That number is static. With `multiplier`, the update is also multiplied by a frozen scalar
    array, which may differ from model to model without compiling anew, and be mapped over.
    """

    multiplier: Float[Array, ""] | None = None

    @property
    def scaling(self) -> float:
        """The factor of the update."""
        return self.alpha / self.rank

    def multiplied(self, factor: Array) -> Array:
        """`factor`, which the update is linear in, times the multiplier if there is one."""
        if self.multiplier is None:
            return factor
        factor = at_least_float32(factor)
        return factor * self.multiplier.astype(factor.dtype)

    @classmethod
    def from_state(
        cls, base: eqx.Module, state: Mapping[str, Array], rank: int, alpha: float
    ) -> LoRAWrapper:
        """Restore from the saved arrays, with a multiplier if one was saved.

        **Raises:** `WrapperError` if they do not fit.
        """
        arrays = {name: array for name, array in state.items() if name != "multiplier"}
        restored: Any = super().from_state(base, arrays, rank, alpha)
        if "multiplier" not in state:
            return restored
        try:
            multiplier = as_multiplier(state["multiplier"])
        except ValueError as err:
            raise WrapperError(f"The saved state does not fit {cls.__name__}: {err}") from err
        return eqx.tree_at(
            lambda w: w.multiplier, restored, multiplier, is_leaf=lambda x: x is None
        )


def as_multiplier(value: Any) -> Float[Array, ""] | None:
    """The `multiplier` field for this argument of a constructor.

    **Raises:** `ValueError` for what is not one real number.
    """
    if value is None:
        return None
    array = None
    if not isinstance(value, str):
        with contextlib.suppress(TypeError, ValueError):  # what JAX says of other objects
            # Copied: it is a leaf of each layer, and one buffer in two leaves cannot be donated.
            array = jnp.copy(jnp.asarray(value, jnp.float32))
    if array is None:
        raise ValueError(f"`multiplier` must be one real number, but is {value!r}")
    if array.shape != ():
        raise ValueError(f"`multiplier` must be one number, but has the shape {array.shape}")
    return array


def adapter_dtype_for(weight: Any, adapter_dtype: Any) -> Any:
    """The dtype of an adapter's arrays: the weight's (float32 at least) unless told otherwise.

    **Raises:** `ValueError` for what is no floating dtype, in which nothing could train.
    """
    if adapter_dtype is None:
        return compute_dtype(weight)
    with contextlib.suppress(TypeError):  # what NumPy says of a name that it does not know
        dtype = jnp.dtype(adapter_dtype)
        if jnp.issubdtype(dtype, jnp.floating):
            return dtype
    raise ValueError(
        "`adapter_dtype` must be a floating dtype, such as jnp.float32 or its name 'bfloat16', "
        f"but is {adapter_dtype!r}"
    )
