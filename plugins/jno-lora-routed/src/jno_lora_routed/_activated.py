"""Activated LoRA: an adapter that acts from an invocation on, and not on the tokens before."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jno.lora import SelectionError
from jno.lora.extending import map_adapters
from jno_lora_zoo import adapter_dtype_for, bibtex_of, with_attributes

from ._routed import Routed, normal
from .routers import Router

M = TypeVar("M")


class Invocation(Router):
    """The weight 1 for tokens from the invocation on, and 0 for tokens before.

    `with_invocation` sets `active` for the tokens of a call. Without it, no token is active.
    """

    frozen = ("active",)
    slots: int
    tokens: Int[Array, " length"]
    active: Float[Array, "*tokens"]

    def __init__(
        self,
        inputs: int,
        slots: int,
        *,
        key: PRNGKeyArray,
        dtype: Any,
        tokens: Sequence[int] = (0,),
    ):
        self.slots, self.tokens, self.active = (
            1,
            jnp.asarray(tokens, jnp.int32),
            jnp.zeros((), dtype),
        )

    def __call__(
        self, x: Float[Array, " in"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "1"]:
        active = self.active
        if active.ndim:
            # Without a trace, the result is an array of NumPy.
            active = jnp.asarray(_of_this_token(active, jax.lax.stop_gradient(x[0])))
        return active.reshape(1).astype(x.dtype)


class ActivatedLoRA(Routed):
    """aLoRA: LoRA for the tokens from the last invocation on, such as the words of a request.

    Law: `y = W x + (alpha / r) B A x` for active tokens, and `y = W x` for tokens before, so that
    the keys and values of these tokens are the base's, bit for bit, and a cache of them serves the
    base and every such adapter. `A ~ N(0, 1/in)` and `B = 0`.

    `with_invocation(model, tokens)` says which tokens are active. Without it, none are.

    **Arguments:** `invocation`: the numbers of the tokens that activate the adapter.
    `adapter_dtype`: by default the weight's, float32 at least.

    Paper: Greenewald et al., "Activated LoRA: Fine-tuned LLMs for Intrinsics", arXiv:2504.12397.
    """

    adapter_fields = ("lora_A", "lora_B")
    variant = "activated-lora"
    paper = "2504.12397"
    bibtex = bibtex_of()
    formula = "r (in + out)"
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
        invocation: Sequence[int] = (0,),
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
        """Without the active tokens of a call."""
        state = super().state()
        stack = state["lora_A"].shape[:-2]
        if state["settings/active"].shape != stack:
            state["settings/active"] = jnp.zeros(stack, state["settings/active"].dtype)
        return state

    def update(
        self, x: Float[Array, " in"], key: PRNGKeyArray | None = None
    ) -> Float[Array, " out"]:
        h = self.alpha / self.rank * (x @ self.lora_A.T.astype(x.dtype))
        return h @ self.lora_B.T.astype(x.dtype)

    def __call__(self, x: Any, *, key: PRNGKeyArray | None = None) -> Any:
        # A sum with 0 would turn -0 into 0.
        layer: Any = self.base
        weight = self.routing(jnp.reshape(x, -1))[0]
        plain, adapted = layer(x), super().__call__(x, key=key)
        # NaN if no axis of the call is the axis of the tokens.
        return jnp.where(weight == 0, plain, adapted * weight.astype(adapted.dtype))


def with_invocation(model: M, tokens: Any, *, last: int | None = None) -> M:
    """`model`, whose activated adapters act from the last invocation in these tokens on.

    A layer knows which token it sees by the innermost `jax.vmap` over as many examples as there are
    tokens, as in `jax.vmap(self.query_proj)(x)`. Without such an axis, the output of the layer is
    NaN. For a batch: `jax.vmap(lambda tokens: with_invocation(model, tokens)(tokens))(batch)`.

    **Arguments:**

    - `tokens`: the numbers of all tokens of one example, which may be traced. Without an
        invocation among them, no token is active.
    - `last`: how many tokens the call computes, if it takes the keys and values of the tokens
        before from a cache. By default all.

    **Raises:** `SelectionError` if no adapter has an invocation, or for tokens that are not a row
    of integers.
    """
    if jnp.ndim(tokens) != 1 or not jnp.issubdtype(jnp.result_type(tokens), jnp.integer):
        raise SelectionError(
            "`tokens` must be the numbers of the tokens of one example. For a batch, use vmap."
        )
    ids, changed = jnp.asarray(tokens), False
    if last is not None and not 0 < last <= len(ids):
        raise SelectionError(f"`last` must be from 1 to {len(ids)}, the tokens, but is {last!r}")
    active_tokens = jnp.vectorize(
        lambda i: active_from(ids, i)[-(last or 0) :], signature="(n)->(t)"
    )

    def put(_: str, adapter: Any) -> Any:
        nonlocal changed
        if not isinstance(adapter, ActivatedLoRA):
            return adapter
        changed, router = True, adapter.routing
        active = active_tokens(router.tokens).astype(router.active.dtype)
        return adapter.with_routing(with_attributes(router, {"active": active}))

    model = map_adapters(put, model)
    if not changed:
        raise SelectionError("The model has no ActivatedLoRA, which waits for an invocation.")
    return model


def active_from(tokens: Int[Array, " t"], invocation: Int[Array, " n"]) -> Bool[Array, " t"]:
    """Whether each token is in the last occurrence of the invocation, or after it."""
    count, length = len(tokens), len(invocation)
    place = jnp.arange(count)
    around = jnp.clip(place[:, None] + jnp.arange(length)[None, :], 0, count - 1)
    begins = jnp.all(tokens[around] == invocation[None, :].astype(tokens.dtype), axis=1)
    start = jnp.max(jnp.where(begins & (place + length <= count), place, -1))
    return (start >= 0) & (place >= start)


def checked_invocation(tokens: Any) -> tuple[int, ...]:
    """**Raises:** `ValueError` unless `tokens` holds whole numbers, at least one."""
    array = np.asarray(tokens)
    if array.ndim != 1 or not array.size or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"`invocation` must hold the numbers of tokens, but is {tokens!r}")
    return tuple(array.tolist())


@custom_vmap
def _of_this_token(active: Float[Array, " tokens"], x: Float[Array, ""]) -> Float[Array, ""]:
    """The entry of `active` for this token: the first axis of `vmap` over `x` of that size."""
    return active[0] if active.shape == (1,) else jnp.full((), jnp.nan, active.dtype)


@_of_this_token.def_vmap
def _(size: int, batched: list[bool], active: Array, x: Any) -> tuple[Any, bool]:
    of_active = batched[0]
    if not of_active and active.shape == (size,):
        return active, True
    if not of_active:
        return _of_this_token(active, x[0]), False
    if active.shape == (size, 1):
        return active[:, 0], True
    return jnp.full(size, jnp.nan, active.dtype), True
