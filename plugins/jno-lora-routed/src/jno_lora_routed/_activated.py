"""Activated LoRA: an adapter that acts only on the tokens from an invocation on."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Float, Int, Integer, PRNGKeyArray

from jno.lora import SelectionError, WrapperError
from jno_lora_zoo import adapter_dtype_for, cited, with_attributes

from ._calls import on_routers
from ._routed import Routed, normal
from .routers import Router, place_on

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
        dtype: DTypeLike,
        tokens: Sequence[int] = (0,),
    ):
        self.slots, self.axis = 1, None
        self.tokens, self.active = jnp.asarray(tokens, jnp.int32), jnp.zeros((), dtype)

    def __call__(
        self, x: Float[Array, " in"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "1"]:
        if self.axis is None:
            raise WrapperError(
                "the invocation of the model's aLoRA has not been set. Call "
                '`with_invocation(model, tokens, axis="tokens")(...)`, also in the loss: without '
                "it, nothing would train. `jno.lora.unwrap_lora(model)` is the model without "
                "adapters"
            )
        count = self.active.size
        # A model that computes a single token need not map its layers.
        place = 0 if count == 1 else place_on(self.axis, count)
        return self.active[place].reshape(1).astype(x.dtype)


class ActivatedLoRA(Routed):
    """aLoRA: LoRA only for the tokens from the last invocation on, such as a request's words.

    Law: `y = W x + (alpha / r) B A x` for active tokens, and `y = W x` for earlier tokens, so that
    their keys and values equal the base's bit for bit, and the base and every such adapter can
    share a cache of them. `A ~ N(0, 1/in)` and `B = 0`.

    `with_invocation(model, tokens, axis=...)` sets which tokens are active; without it, a call
    raises `WrapperError`.

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
        base: eqx.nn.Linear,
        rank: int,
        alpha: float,
        *,
        key: PRNGKeyArray,
        invocation: Sequence[int] = (),
        adapter_dtype: DTypeLike | None = None,
    ):
        outputs, inputs = base.weight.shape
        dtype = adapter_dtype_for(base.weight, adapter_dtype)
        A, B = normal(key, (rank, inputs), dtype), jnp.zeros((outputs, rank), dtype)
        tokens = checked_invocation(invocation)
        router = self.router_class(inputs, 1, key=key, dtype=dtype, tokens=tokens)
        self._take(base, rank, alpha, A, B, router)

    @classmethod
    def options_of(cls, state: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
        return {"invocation": (0,) * state["settings/tokens"].shape[-1]}

    def state(self) -> dict[str, Array]:
        """The state, without the active tokens of a call."""
        state = super().state()
        stack, dtype = state["lora_A"].shape[:-2], state["settings/active"].dtype
        return {**state, "settings/active": jnp.zeros(stack, dtype)}

    def update(
        self, x: Float[Array, " in"], key: PRNGKeyArray | None = None
    ) -> Float[Array, " out"]:
        h = self.alpha / self.rank * (x @ self.lora_A.T.astype(x.dtype))
        return h @ self.lora_B.T.astype(x.dtype)

    def __call__(self, x: ArrayLike, *, key: PRNGKeyArray | None = None) -> Array:
        x = jnp.asarray(x)
        plain = self.base(x)
        is_active = self.routing(jnp.reshape(x, -1))[0] != 0
        # A sum with 0 would turn -0 into 0.
        return jnp.where(is_active, self._updated(plain, x, key), plain)


def with_invocation(
    model: M, tokens: ArrayLike | Sequence[int], *, axis: str, last: int | None = None
) -> M:
    """`model`, with activated adapters that act from the last invocation in these tokens on.

    A layer finds out which token it gets by the name of the axis over which the model maps its
    layers: `jax.vmap(layer, axis_name="tokens")`. For a batch:
    `jax.vmap(lambda tokens: with_invocation(model, tokens, axis="tokens")(tokens))(batch)`.

    **Arguments:**

    - `tokens`: the ids of all tokens of one example, which may be traced. Without an invocation
        among them, no token is active.
    - `axis`: the name of the axis of the tokens.
    - `last`: how many tokens the call computes, if the keys and values of earlier tokens come from
        a cache. By default all. A single token needs no axis.

    **Raises:** `SelectionError` if no adapter has an invocation, or for tokens that are not a
    one-dimensional array of integers. A call raises `WrapperError` if it does not map its layers
    over such an axis, or over an axis with another number of tokens.
    """
    ids = jnp.asarray(tokens)
    if ids.ndim != 1 or not jnp.issubdtype(ids.dtype, jnp.integer):
        raise SelectionError(
            "`tokens` must be the numbers of the tokens of one example, but they are "
            f"{ids.dtype} {ids.shape}. For a batch, use vmap."
        )
    if last is not None and not 0 < last <= len(ids):
        raise SelectionError(f"`last` must be from 1 to {len(ids)}, the tokens, but is {last!r}")
    active_tokens = jnp.vectorize(
        lambda invocation: active_from(ids, invocation)[-(last or 0) :], signature="(n)->(t)"
    )

    def activate(_: str, router: Invocation) -> Invocation:
        active = active_tokens(router.tokens).astype(router.active.dtype)
        return with_attributes(router, {"active": active, "axis": axis})

    refusal = "The model has no ActivatedLoRA, which waits for an invocation."
    return on_routers("with_invocation", activate, model, Invocation, refusal)


def active_from(tokens: Integer[Array, " t"], invocation: Int[Array, " n"]) -> Bool[Array, " t"]:
    """Whether each token is in the last occurrence of the invocation, or after it."""
    count, length = len(tokens), len(invocation)
    place = jnp.arange(count)
    around = jnp.clip(place[:, None] + jnp.arange(length)[None, :], 0, count - 1)
    begins = jnp.all(tokens[around].astype(jnp.int32) == invocation[None, :], axis=1)
    start = jnp.max(jnp.where(begins & (place + length <= count), place, -1))
    return (start >= 0) & (place >= start)


def checked_invocation(tokens: Sequence[int]) -> tuple[int, ...]:
    """**Raises:** `ValueError` unless `tokens` are ids of at least one token."""
    array = np.asarray(tokens)
    is_row = array.ndim == 1 and array.size and np.issubdtype(array.dtype, np.integer)
    if not is_row or array.min() < 0 or array.max() > np.iinfo(np.int32).max:
        raise ValueError(
            f"`invocation` must hold the numbers of tokens, but is {tokens!r}. Give the tokens "
            'that activate the adapter: options={"invocation": (...)}'
        )
    return tuple(array.tolist())
