"""Activated LoRA: an adapter that acts only on the tokens from an invocation on."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool, Float, Int, Integer, PRNGKeyArray

from jno.lora import SelectionError, WrapperError
from jno_lora_zoo import adapter_dtype_for, cited, with_attributes

from ._calls import on_routers
from ._routed import Routed, normal
from .routers import Router, named_axes

M = TypeVar("M")


class Invocation(Router):
    """A router with weight 1 for tokens from the invocation on, and 0 for earlier tokens.

    `with_invocation` sets `active` for the tokens of a call, and the name `axis` of their axis.
    """

    frozen = ("active",)
    slots: int = eqx.field(static=True)
    tokens: Int[Array, " length"]
    active: Float[Array, "*tokens"]
    axis: str | None = eqx.field(static=True)

    def __init__(
        self,
        inputs: int,
        slots: int,
        *,
        key: PRNGKeyArray,
        dtype: Any,
        tokens: Sequence[int] = (0,),
    ):
        self.slots, self.axis = 1, None
        self.tokens, self.active = jnp.asarray(tokens, jnp.int32), jnp.zeros((), dtype)

    def __call__(
        self, x: Float[Array, " in"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "1"]:
        if not self.active.ndim:
            raise WrapperError(
                "the invocation of the model's aLoRA has not been set. Call "
                "`with_invocation(model, tokens)(...)`, also in the loss: without it, nothing "
                "would train. `jno.lora.unwrap_lora(model)` is the model without adapters"
            )
        if self.axis is not None and self.active.size > 1:
            active = self.active[_place_on(self.axis, self.active.size)]
        else:
            # Outside a trace, the result is a NumPy array.
            active = jnp.asarray(_of_this_token(self.active, jax.lax.stop_gradient(x[0])))
        return active.reshape(1).astype(x.dtype)


class ActivatedLoRA(Routed):
    """aLoRA: LoRA only for the tokens from the last invocation on, such as a request's words.

    Law: `y = W x + (alpha / r) B A x` for active tokens, and `y = W x` for earlier tokens, so that
    their keys and values equal the base's bit for bit, and the base and every such adapter can
    share a cache of them. `A ~ N(0, 1/in)` and `B = 0`.

    `with_invocation(model, tokens)` sets which tokens are active; without it, a call raises
    `WrapperError`.

    **Arguments:** `invocation`: the ids of the tokens that activate the adapter; required.
    `adapter_dtype`: by default the weight's, float32 at least.

    Paper: Greenewald et al., "Activated LoRA: Fine-tuned LLMs for Intrinsics", arXiv:2504.12397.
    """

    adapter_fields = ("lora_A", "lora_B")
    variant = "activated-lora"
    about = cited("2504.12397", family="routed", formula="r (in + out)")
    router_class = Invocation

    lora_A: Float[Array, "r in"]
    lora_B: Float[Array, "out r"]

    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: PRNGKeyArray,
        invocation: Sequence[int] = (),
        adapter_dtype: Any = None,
    ):
        outputs, inputs = base.weight.shape
        dtype = adapter_dtype_for(base.weight, adapter_dtype)
        A, B = normal(key, (rank, inputs), dtype), jnp.zeros((outputs, rank), dtype)
        tokens, make = checked_invocation(invocation), cast(Any, self.router_class)
        router = make(inputs, 1, key=key, dtype=dtype, tokens=tokens)
        self._take(base, rank, alpha, A, B, router)

    @classmethod
    def options_of(cls, state: Mapping[str, Array]) -> dict[str, Any]:
        return {"invocation": (0,) * state["settings/tokens"].shape[-1]}

    def state(self) -> dict[str, Any]:
        """The state, without the active tokens of a call."""
        state = super().state()
        stack, dtype = state["lora_A"].shape[:-2], state["settings/active"].dtype
        return {**state, "settings/active": jnp.zeros(stack, dtype)}

    def update(
        self, x: Float[Array, " in"], key: PRNGKeyArray | None = None
    ) -> Float[Array, " out"]:
        h = self.alpha / self.rank * (x @ self.lora_A.T.astype(x.dtype))
        return h @ self.lora_B.T.astype(x.dtype)

    def __call__(self, x: Any, *, key: PRNGKeyArray | None = None) -> Any:
        # A sum with 0 would turn -0 into 0.
        layer: Any = self.base
        weight = self.routing(jnp.reshape(x, -1))[0]
        plain = layer(x)
        adapted = self._updated(plain, x, key)
        # NaN if no axis of the call is the token axis.
        return jnp.where(weight == 0, plain, adapted * weight.astype(adapted.dtype))


def with_invocation(
    model: M, tokens: Any, *, axis: str | None = None, last: int | None = None
) -> M:
    """`model`, with activated adapters that act from the last invocation in these tokens on.

    A layer must find out which token it gets. Pass `axis` if the model names its token axis.
    Otherwise the token axis is the `jax.vmap` over as many examples as there are tokens, as in
    `jax.vmap(self.query_proj)(x)`. Without such an axis, the output of the layer is NaN. For a
    batch: `jax.vmap(lambda tokens: with_invocation(model, tokens)(tokens))(batch)`.

    **Arguments:**

    - `tokens`: the ids of all tokens of one example, which may be traced. Without an invocation
        among them, no token is active.
    - `axis`: the name in the model's `jax.vmap(layer, axis_name=...)` over the tokens.
    - `last`: how many tokens the call computes, if the keys and values of earlier tokens come from
        a cache. By default all.

    **Raises:** `SelectionError` if no adapter has an invocation, or for tokens that are not a
    one-dimensional array of integers. A call raises `WrapperError` if two axes could be the token
    axis (heads, for example), or if no axis has the name.
    """
    if jnp.ndim(tokens) != 1 or not jnp.issubdtype(jnp.result_type(tokens), jnp.integer):
        raise SelectionError(
            "`tokens` must be the numbers of the tokens of one example. For a batch, use vmap."
        )
    ids = jnp.asarray(tokens)
    if last is not None and not 0 < last <= len(ids):
        raise SelectionError(f"`last` must be from 1 to {len(ids)}, the tokens, but is {last!r}")
    active_tokens = jnp.vectorize(
        lambda i: active_from(ids, i)[-(last or 0) :], signature="(n)->(t)"
    )

    def put(_: str, adapter: Routed) -> Routed:
        router = adapter.routing
        active = active_tokens(router.tokens).astype(router.active.dtype)
        return adapter.with_routing(with_attributes(router, {"active": active, "axis": axis}))

    refusal = "The model has no ActivatedLoRA, which waits for an invocation."
    return on_routers("with_invocation", put, model, Invocation, refusal)


def active_from(tokens: Integer[Array, " t"], invocation: Int[Array, " n"]) -> Bool[Array, " t"]:
    """Whether each token is in the last occurrence of the invocation, or after it."""
    count, length = len(tokens), len(invocation)
    place = jnp.arange(count)
    around = jnp.clip(place[:, None] + jnp.arange(length)[None, :], 0, count - 1)
    begins = jnp.all(tokens[around].astype(jnp.int32) == invocation[None, :], axis=1)
    start = jnp.max(jnp.where(begins & (place + length <= count), place, -1))
    return (start >= 0) & (place >= start)


def checked_invocation(tokens: Any) -> tuple[int, ...]:
    """**Raises:** `ValueError` unless `tokens` are ids of at least one token."""
    array = np.asarray(tokens)
    is_row = array.ndim == 1 and array.size and np.issubdtype(array.dtype, np.integer)
    if not is_row or array.min() < 0 or array.max() > np.iinfo(np.int32).max:
        raise ValueError(
            f"`invocation` must hold the numbers of tokens, but is {tokens!r}. Give the tokens "
            'that activate the adapter: options={"invocation": (...)}'
        )
    return tuple(array.tolist())


def _place_on(axis: str, count: int) -> Any:
    """The index of this token on the named axis. **Raises:** `WrapperError` for another axis."""
    with named_axes(axis):
        size: int = jax.lax.psum(1, axis)
        place = jax.lax.axis_index(axis)
    if size != count:
        raise WrapperError(f"the axis {axis!r} has {size} entries, but there are {count} tokens")
    return place


@custom_vmap
def _of_this_token(active: Float[Array, "*stack tokens"], x: Float[Array, ""]) -> Any:
    """The entry of `active` for this token: the first axis of `vmap` over `x` of that size."""
    if active.shape[-1] == 1:
        return active[..., 0]
    return jnp.full(active.shape[:-1], jnp.nan, active.dtype)


@_of_this_token.def_vmap
def _(size: int, batched: list[bool], active: Array, x: Any) -> tuple[Any, bool]:
    of_active, of_x = batched
    x = x[0] if of_x else x
    if of_active:  # a stack inside the tokens: the entries of all its layers
        return _of_this_token(active, x), True
    if active.shape[-1] == size > 1:
        return jnp.moveaxis(_without_another_axis(active, x), -1, 0), True
    return _of_this_token(active, x), False


@custom_vmap
def _without_another_axis(active: Float[Array, "*stack tokens"], x: Float[Array, ""]) -> Any:
    """`active`. **Raises:** `WrapperError` if another axis of `x` could be the tokens, too."""
    return active


@_without_another_axis.def_vmap
def _(size: int, batched: list[bool], active: Array, x: Any) -> tuple[Any, bool]:
    of_active, of_x = batched
    if of_active:  # each example of a batch has tokens
        return active, True
    if active.shape[-1] == size:
        raise WrapperError(
            f"the layer is mapped over two axes of {size} entries, as many as there are tokens. "
            "Name the axis of the tokens in the model, `jax.vmap(layer, axis_name=...)`, and in "
            "`with_invocation(model, tokens, axis=...)`"
        )
    return _without_another_axis(active, x[0] if of_x else x), False
