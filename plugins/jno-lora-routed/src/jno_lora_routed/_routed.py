"""The base class of the adapters: a layer plus low-rank products, weighted by a router."""

import abc
import dataclasses
import math
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jax.sharding import PartitionSpec
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from jno.lora import About, Shared, WrapperError
from jno_lora_zoo import LinearLayer, dtype_of, with_attributes

from .routers import Router, Softmax

_NO_MERGE = (
    "cannot be merged: its update depends on the layer's input, so no weight computes it. Keep the "
    "layer adapted (save it with its adapters), or drop the update with `unwrap` "
    "(`jno.lora.unwrap_lora(model)`)."
)


class Routed(LinearLayer):
    """`y = layer(x) + update(x)`, with an update whose parts a router weights for each token.

    The field `router` has the router's trained arrays, and `settings` everything else; `routing` is
    the whole router. To use another router, subclass with another `router_class`. `rank` is not
    clamped. A call takes the arguments of `eqx.nn.Linear`, and passes `key` to the router.
    """

    adapter_fields = ("lora_A", "lora_B", "router")
    about = About(family="routed")
    mergeable = False
    router_class: ClassVar[type[Router]] = Softmax

    base: eqx.nn.Linear
    lora_A: Array
    lora_B: Any  # an array, or a `Shared`
    router: Router
    settings: Router
    rank: int = eqx.field(static=True)
    alpha: float = eqx.field(static=True)

    @classmethod
    def fits(cls, leaf: object) -> bool:
        return _is_called_as_linear(leaf) and super().fits(leaf)

    @classmethod
    def misfit(cls, leaf: object) -> str | None:
        # A layer of this kind with an unknown `__call__`.
        if LinearLayer.fits(leaf) and not _is_called_as_linear(leaf):
            return f"nothing says which axis of its input a {type(leaf).__name__} has features on"
        return super().misfit(leaf)

    @property
    def routing(self) -> Router:
        """The router with all of its arrays."""
        return eqx.combine(self.router, self.settings)

    def with_routing(self, router: Router) -> "Routed":
        """This adapter with a changed router, for example with another task."""
        trained, settings = parts_of(router)
        return with_attributes(self, {"router": trained, "settings": settings})

    @abc.abstractmethod
    def update(
        self, x: Float[Array, " in"], key: PRNGKeyArray | None = None
    ) -> Float[Array, " out"]:
        """The update for the features of one token, in their dtype."""

    def __call__(self, x: ArrayLike, *, key: PRNGKeyArray | None = None) -> Array:
        x = jnp.asarray(x)
        return self._updated(self.base(x), x, key)

    def _updated(self, y: Array, x: Array, key: PRNGKeyArray | None) -> Array:
        """The output `y` of the layer for `x`, with the update."""
        x = x.astype(jnp.result_type(x.dtype, dtype_of(self.base.weight)))
        if x.ndim == 2:  # a layer without a bias also takes a matrix with inputs as columns
            update = jax.vmap(lambda column: self.update(column, key), 1, 1)(x)
        else:
            update = self.update(x.reshape(-1), key)
        return y + update.astype(y.dtype).reshape(y.shape)

    def merge(self) -> eqx.Module:
        raise WrapperError(f"{type(self).__name__} {_NO_MERGE}")

    def partition_specs(self) -> dict[str, PartitionSpec]:
        axes = self.mesh_axes(self.base)
        specs: dict[str, PartitionSpec] = {}
        for name, side in (("lora_A", axes.inputs), ("lora_B", axes.outputs)):
            array = getattr(self, name)
            if eqx.is_array(array):
                between = (None,) * (array.ndim - len(axes.stack) - 2)
                ends = (None, side) if name == "lora_A" else (side, None)
                specs[name] = PartitionSpec(*axes.stack, *between, *ends)
        return specs

    def _take(
        self,
        base: eqx.nn.Linear,
        rank: int,
        alpha: float,
        A: Array,
        B: Array | Shared,
        router: Router,
    ) -> None:
        """Sets the fields of this new adapter."""
        self.base, self.rank, self.alpha = base, rank, alpha
        self.lora_A, self.lora_B = A, B
        self.router, self.settings = parts_of(router)


def weighted(
    w: Float[Array, " slots"], h: Float[Array, "*slots r"], B: Float[Array, "slots out r"]
) -> Float[Array, " out"]:
    """`sum_i w_i B_i h_i`, in the dtype of `w`. All slots may have the same `h`."""
    h = jnp.broadcast_to(h, (B.shape[0], B.shape[2]))
    return jnp.einsum("sr,sor->o", w[:, None] * h, B.astype(w.dtype))


def normal(key: PRNGKeyArray, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """`A ~ N(0, 1/in)`, for a shape that ends in `in`."""
    return jax.random.normal(key, shape, dtype) / math.sqrt(shape[-1])


def checked_count(name: str, value: object, least: int = 1) -> int:
    """**Raises:** `ValueError` unless the option `name` is an int of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"`{name}` must be an int of at least {least}, but is {value!r}")
    return value


def parts_of(router: Router) -> tuple[Router, Router]:
    """The trained arrays of a router, and everything else.

    **Raises:** `WrapperError` if `frozen` names something that is not a field, since the intended
    field would train.
    """
    frozen = type(router).frozen
    fields = [field.name for field in dataclasses.fields(router)]
    if unknown := [name for name in frozen if name not in fields]:
        raise WrapperError(
            f"`{type(router).__name__}.frozen` names {', '.join(unknown)}, but the fields are "
            f"{', '.join(fields)}. Name fields, in a tuple."
        )
    trains = jtu.tree_map_with_path(
        lambda path, leaf: eqx.is_inexact_array(leaf) and path[0].name not in frozen, router
    )
    return eqx.partition(router, trains)


def _is_called_as_linear(leaf: object) -> bool:
    return isinstance(leaf, eqx.nn.Linear) and type(leaf).__call__ is eqx.nn.Linear.__call__
