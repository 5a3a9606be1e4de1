"""The adapter of a bank: one layer with a low-rank update in each of many slots."""

import copy
import functools
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import equinox as eqx
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jno.lora import SelectionError
from jno.lora.extending import adapted_layers, map_adapters
from jno_lora_zoo import (
    Bias,
    EmbeddingLayer,
    LayerKind,
    LinearLayer,
    Matrix,
    Method,
    RecurrentLayer,
    adapters_for,
    scaled,
)

from ._products import slot_update

M = TypeVar("M")


class Slots(Method):
    """A low-rank update of one layer for each slot. A call uses the one in `slot`.

    Law: `W' = diag(g_i) (W + s_i B_i A_i)` and `b' = b + d_i`, for the slot `i`. Slot 0 is the base
    alone. A scale `s_i` of NaN marks an empty slot: every output is NaN then.

    - `lora_A`, `lora_Bt`: the factors, the second transposed: a call multiplies few rows with each,
      which is faster like this. Zeros fill up lower ranks.
    - `scale`: `s`; `gain`: `g`, `None` without a slot that needs it; `shift`: `d`, likewise.
    - `slot`: the index. `at_slot` sets it, in all layers of a model.
    """

    adapter_fields = ("lora_A", "lora_Bt")
    factor_sides: ClassVar[Mapping[str, str]] = {}

    lora_A: Float[Array, "slots r in"]
    lora_Bt: Float[Array, "slots r out"]
    scale: Float[Array, " slots"]
    gain: Float[Array, "slots out"] | None
    shift: Float[Array, "slots out"] | None
    slot: Int[Array, ""]

    @classmethod
    def effective_rank(cls, rank: int, outputs: int, inputs: int) -> int:
        return rank  # an update of PiSSA has twice its rank

    def start(
        self,
        W: Matrix,
        r: int,
        key: PRNGKeyArray,
        dtype: Any,
        *,
        slots: int = 1,
        gain: bool = False,
        shift: bool = False,
    ) -> dict[str, Any]:
        outputs, inputs = W.shape
        return {
            "lora_A": jnp.zeros((slots, r, inputs), dtype),
            "lora_Bt": jnp.zeros((slots, r, outputs), dtype),
            "scale": jnp.full(slots, jnp.nan, dtype).at[0].set(0),
            "gain": jnp.ones((slots, outputs), dtype) if gain else None,
            "shift": jnp.zeros((slots, outputs), dtype) if shift else None,
            "slot": jnp.zeros((), jnp.int32),
        }

    @classmethod
    def options_of(cls, state: Mapping[str, Array]) -> dict[str, Any]:
        present = {name: True for name in ("gain", "shift") if name in state}
        return {"slots": state["scale"].shape[0], **present}

    def law(self, W: Matrix) -> Matrix:
        A, Bt = (self.own(M).astype(W.dtype) for M in (self.lora_A, self.lora_Bt))
        V = W + self.times_scale(Bt.T @ A)
        return V if self.gain is None else scaled(V, self.own(self.gain))

    def bias_law(self, b: Bias) -> Bias:
        return b if self.shift is None else b + self.or_base(self.own(self.shift).astype(b.dtype))

    def forward(self, x: Any) -> Array:
        y = self.updated(x)
        return y if self.gain is None else scaled(y, self.own(self.gain))

    def updated(self, x: Any) -> Array:
        """`(W + s B A) x`, here with a copy of the factors for each example of a batch."""
        A, B = self.own(self.lora_A), self.own(self.lora_Bt).T
        # With `seen`, no kind puts the update into its weight: that would be copied as well.
        return self.low_rank(x, A, B, between=self.times_scale, after=self.or_base, seen=x)

    def added(self, y: Array, x: Array, A: Array) -> Array:
        """`y + s B A x` by the product of the whole batch; `y` itself in slot 0."""
        s = self.scaling.astype(y.dtype)
        return slot_update(y, x.astype(y.dtype), A, self.lora_Bt, s, self.nearest)

    def own(self, stack: Array) -> Array:
        """The entry of this slot, or of the nearest one that exists."""
        return stack[self.nearest]

    @property
    def nearest(self) -> Int[Array, ""]:
        """`slot`, or the nearest one that exists."""
        return jnp.clip(self.slot, 0, len(self.scale) - 1)

    @property
    def scaling(self) -> Float[Array, ""]:
        """`s`, or NaN if there is no such slot: no example gets another one's adapter."""
        return jnp.where(self.slot == self.nearest, self.own(self.scale), jnp.nan)

    def times_scale(self, u: Array) -> Array:
        """`s u`."""
        return self.scaling.astype(u.dtype) * u

    def or_base(self, update: Array) -> Array:
        """`update`, or in slot 0 -0.0, which changes no number that it is added to."""
        return jnp.where(self.slot == 0, jnp.asarray(-0.0, update.dtype), update)


class SlotsLinear(Slots, LinearLayer):  # pyright: ignore[reportIncompatibleVariableOverride]
    """Slots of a linear layer."""

    def updated(self, x: Any) -> Array:
        return self.added(self.product(x), jnp.reshape(jnp.asarray(x), (-1,)), self.lora_A)


class SlotsEmbedding(Slots, EmbeddingLayer):  # pyright: ignore[reportIncompatibleVariableOverride]
    """Slots of an embedding table. A lookup reads one column of one `A`."""

    def updated(self, x: Any) -> Array:
        h = self.lora_A[self.nearest, :, x]
        same = jnp.broadcast_to(jnp.eye(len(h), dtype=h.dtype), (len(self.scale), len(h), len(h)))
        return self.added(self.product(x), h, same)


class SlotsRecurrent(Slots, RecurrentLayer):  # pyright: ignore[reportIncompatibleVariableOverride]
    """Slots of a cell. Their change of the gates is added to the cell's biases."""

    def __call__(self, x: Array, hidden: Any, **kwargs: Any) -> Any:
        cell: Any = self.base
        is_gru = type(cell) is eqx.nn.GRUCell
        if not is_gru and type(cell) is not eqx.nn.LSTMCell:
            return super().__call__(x, hidden, **kwargs)  # a subclass may do anything
        if not is_gru:
            change = self._change(jnp.concatenate([x, hidden[0]]))
            return _with_biases(cell, bias=self.bias_law(change))(x, hidden)
        of_input = self._change(jnp.concatenate([x, jnp.zeros_like(hidden)]))
        of_state = self._change(jnp.concatenate([jnp.zeros_like(x), hidden]))
        # The reset gate multiplies what the new state gets from the old one, and `bias_n` with it.
        split = 2 * cell.hidden_size
        bias = of_input + jnp.pad(of_state[:split], (0, len(of_state) - split))
        return _with_biases(cell, bias=self.bias_law(bias), bias_n=of_state[split:])(x, hidden)

    def _change(self, v: Array) -> Array:
        """`W' v - W v`."""
        u = self.added(jnp.full(self.lora_Bt.shape[-1], -0.0, v.dtype), v, self.lora_A)
        if self.gain is not None:
            product = self.matrix(self.base).astype(v.dtype) @ v
            u = scaled(product + u, self.own(self.gain)) - product
        return self.or_base(u)


def _with_biases(cell: Any, **changes: Array) -> Any:
    """`cell` with these numbers added to its biases."""
    made = copy.copy(cell)
    for name, change in changes.items():
        bias = getattr(cell, name)
        object.__setattr__(made, name, change if bias is None else bias + change)
    object.__setattr__(made, "use_bias", True)
    return made


def slots_class(adapter: type) -> type[Slots] | None:
    """The slots for the layers of an adapter class, by its layer kind; `None` without one."""
    kinds = (c for c in adapter.__mro__ if issubclass(c, LayerKind) and not issubclass(c, Method))
    kind = next(kinds, LayerKind)
    return None if kind is LayerKind else _of_kind(kind)


@functools.cache
def _of_kind(kind: type[LayerKind]) -> type[Slots]:
    for known in (SlotsLinear, SlotsEmbedding, SlotsRecurrent):
        if kind in known.__bases__:
            return known
    (made,) = adapters_for(kind, __name__, methods=[Slots]).values()
    return made


def at_slot(model: M, slot: Any) -> M:
    """`model`, whose layers use their adapters in one slot. Inside `vmap`, each example its own.

        jax.vmap(lambda x, slot: at_slot(model, slot)(x))(xs, slots)

    **Arguments:**

    - `model`: the `model` of a bank or of a `Snapshot`, perhaps trained.
    - `slot`: one whole number, which may be traced. 0 is the base alone. A traced one that is empty
        or does not exist makes the outputs of the adapted layers NaN.

    **Raises:** `SelectionError` if the slot is known and does not exist, or not one whole number;
    or if `model` is not that of a bank.
    """
    layers = [adapter for _, adapter in adapted_layers(model) if isinstance(adapter, Slots)]
    if not layers:
        raise SelectionError(
            "`model` has no slots: give the `model` of a bank, to which an adapter was added."
        )
    is_int = isinstance(slot, int) and not isinstance(slot, bool)
    if not (is_int or jnp.issubdtype(getattr(slot, "dtype", bool), jnp.integer)) or jnp.ndim(slot):
        raise SelectionError(f"`slot` must be one whole number, but is {slot!r}.")
    count = layers[0].scale.shape[-1]
    if not isinstance(slot, Tracer) and not 0 <= int(slot) < count:
        raise SelectionError(f"There is no slot {slot}: the bank has {count}, from 0.")
    index = jnp.asarray(slot).astype(int)
    # Marked before it is cut to 32 bits, where another slot's number could be left.
    index = jnp.where((index >= 0) & (index < count), index, -1).astype(jnp.int32)

    def put(_: str, adapter: Any) -> Any:
        if not isinstance(adapter, Slots):
            return adapter
        own = jnp.broadcast_to(index, adapter.slot.shape)
        return eqx.tree_at(lambda it: it.slot, adapter, own)

    return map_adapters(put, model)
