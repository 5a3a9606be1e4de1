"""The adapter of a bank: one layer with a low-rank update in each of many slots."""

import copy
import functools
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from equinox import AbstractClassVar
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from jno.lora import LoRAWrapper, MatrixAdapter, Term
from jno.lora.extending import adapted_layers, adds_up, over_stack
from jno_lora_zoo import (
    Bias,
    EmbeddingLayer,
    LayerKind,
    LinearLayer,
    Matrix,
    Method,
    RecurrentLayer,
    adapters_for,
    kind_for,
    scaled,
)

from ._products import slot_update


class Slots(Method):
    """A low-rank update of one layer for each slot. A call uses the update of `slot`.

    Law: `W' = diag(g_i) (W + s_i B_i A_i)` and `b' = b + d_i`, for the slot `i`. Slot 0 is the base
    alone. A scale `s_i` of NaN marks an empty slot, and makes every output NaN.

    - `lora_A`, `lora_Bt`: the factors, padded with zeros to one rank. `B` is transposed, because
      this makes products with few rows faster.
    - `scale`: `s`; `gain`: `g`, `None` if no slot needs it; `shift`: `d`, likewise.
    - `slot`: the index `i`. `at_slot` sets it in all layers of a model.
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
        return rank  # not cut to the matrix: an update of PiSSA has twice its rank

    def start(
        self,
        W: Matrix,
        r: int,
        key: PRNGKeyArray,
        dtype: DTypeLike,
        *,
        slots: int = 1,
        gain: bool = False,
        shift: bool = False,
    ) -> dict[str, Array | None]:
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
    def options_of(cls, state: Mapping[str, Array]) -> dict[str, int | bool]:
        return {"slots": len(state["scale"]), "gain": "gain" in state, "shift": "shift" in state}

    def law(self, W: Matrix) -> Matrix:
        A, Bt = (self.of_slot(M).astype(W.dtype) for M in (self.lora_A, self.lora_Bt))
        V = W + self.times_scale(Bt.T @ A)
        return V if self.gain is None else scaled(V, self.of_slot(self.gain))

    def bias_law(self, b: Bias) -> Bias:
        if self.shift is None:
            return b
        return b + self.or_base(self.of_slot(self.shift).astype(b.dtype))

    def forward(self, x: ArrayLike) -> Array:
        y = self.updated(x)
        return y if self.gain is None else scaled(y, self.of_slot(self.gain))

    def updated(self, x: ArrayLike) -> Array:
        """`(W + s B A) x`. By default, the factors are copied for each example of a batch."""
        A, B = self.of_slot(self.lora_A), self.of_slot(self.lora_Bt).T
        # With `seen`, no layer kind adds the update to its weight, which would copy the weight.
        return self.low_rank(x, A, B, between=self.times_scale, after=self.or_base, seen=x)

    def added(self, y: Array, x: Array, A: Array) -> Array:
        """`y + s B A x`, computed for a whole batch at once; `y` itself in slot 0."""
        s = self.scaling.astype(y.dtype)
        return slot_update(y, x.astype(y.dtype), A, self.lora_Bt, s, self.nearest)

    def of_slot(self, stack: Array) -> Array:
        return stack[self.nearest]

    @property
    def nearest(self) -> Int[Array, ""]:
        """`slot`, or the nearest slot that exists."""
        return jnp.clip(self.slot, 0, len(self.scale) - 1)

    @property
    def scaling(self) -> Float[Array, ""]:
        """`s`, or NaN if the slot does not exist, so that no example gets a wrong adapter."""
        return jnp.where(self.slot == self.nearest, self.of_slot(self.scale), jnp.nan)

    def times_scale(self, u: Array) -> Array:
        return self.scaling.astype(u.dtype) * u

    def or_base(self, update: Array) -> Array:
        """`update`, or -0.0 in slot 0, because adding -0.0 changes no number."""
        return jnp.where(self.slot == 0, jnp.asarray(-0.0, update.dtype), update)


class SlotsLinear(Slots, LinearLayer):  # pyright: ignore[reportIncompatibleVariableOverride]
    def updated(self, x: ArrayLike) -> Array:
        return self.added(self.product(x), jnp.reshape(jnp.asarray(x), (-1,)), self.lora_A)


class SlotsEmbedding(Slots, EmbeddingLayer):  # pyright: ignore[reportIncompatibleVariableOverride]
    """Slots of an embedding table, where a lookup reads one column of one `A`."""

    def updated(self, x: ArrayLike) -> Array:
        h = self.lora_A[self.nearest, :, x]
        identity = jnp.eye(len(h), dtype=h.dtype)
        identities = jnp.broadcast_to(identity, (len(self.scale), *identity.shape))
        return self.added(self.product(x), h, identities)


class SlotsRecurrent(Slots, RecurrentLayer):  # pyright: ignore[reportIncompatibleVariableOverride]
    """Slots of a recurrent cell, where the update of the gates is added to the biases."""

    def __call__(self, x: Array, hidden: PyTree, **kwargs: Any) -> PyTree:
        cell: Any = self.base
        if type(cell) is eqx.nn.LSTMCell:
            bias = self.bias_law(self._change(jnp.concatenate([x, hidden[0]])))
            return _with_biases(cell, bias=bias)(x, hidden)
        if type(cell) is not eqx.nn.GRUCell:  # a subclass may compute something else
            return super().__call__(x, hidden, **kwargs)
        of_input = self._change(jnp.concatenate([x, jnp.zeros_like(hidden)]))
        of_state = self._change(jnp.concatenate([jnp.zeros_like(x), hidden]))
        # The reset gate multiplies the old state's share of the new state, and `bias_n` with it.
        split = 2 * cell.hidden_size
        bias = self.bias_law(of_input + jnp.pad(of_state[:split], (0, len(of_state) - split)))
        return _with_biases(cell, bias=bias, bias_n=of_state[split:])(x, hidden)

    def _change(self, v: Array) -> Array:
        """`W' v - W v`."""
        u = self.added(jnp.full(self.lora_Bt.shape[-1], -0.0, v.dtype), v, self.lora_A)
        if self.gain is not None:
            product = self.matrix(self.base).astype(v.dtype) @ v
            u = scaled(product + u, self.of_slot(self.gain)) - product
        return self.or_base(u)


def _with_biases(cell: eqx.Module, **changes: Array) -> PyTree:
    changed = copy.copy(cell)
    for name, change in changes.items():
        bias = getattr(cell, name)
        object.__setattr__(changed, name, change if bias is None else bias + change)
    object.__setattr__(changed, "use_bias", True)
    return changed


class SumSlots(LoRAWrapper):
    """The states of adapters of one class with a `sum_of`, one in each slot, at one rank.

    A call builds the adapter of `slot`. A state of zeros changes nothing, so slot 0 is the base.

    - `states`: by the names of `adapter.state()`. `scale` is NaN for an empty slot.
    """

    adapter_fields = ("slot",)  # a whole number: nothing in these slots trains
    adapter: AbstractClassVar[type[LoRAWrapper]]

    base: PyTree
    states: dict[str, Float[Array, "slots ..."]]
    scale: Float[Array, " slots"]
    slot: Int[Array, ""]
    rank: Any = eqx.field(static=True)
    alpha: Any = eqx.field(static=True)

    @classmethod
    def applies_to(cls, leaf: PyTree) -> bool:
        return cls.adapter.applies_to(leaf)

    @classmethod
    def stack_ndim(cls, leaf: PyTree) -> int:
        return cls.adapter.stack_ndim(leaf)

    @classmethod
    def from_state(
        cls, base: PyTree, state: Mapping[str, Array], rank: Any, alpha: Any
    ) -> LoRAWrapper:
        states = {name.partition("/")[2]: x for name, x in state.items() if "/" in name}
        return cls(base, states, state["scale"], state["slot"], rank, alpha)  # pyright: ignore

    @classmethod
    def at_rank(cls, term: Term, rank: int, ndim: int) -> Term:
        """A term with at least this rank. Its arrays have `ndim` axes of a stack in front."""

        def of_layer(state: Mapping[str, Array]) -> Term | None:
            return MatrixAdapter.of(cls.adapter).sum_of([term._replace(state=state)], rank)

        return over_stack(of_layer, ndim)(dict(term.state))

    @staticmethod
    def empty_slots(
        form: Mapping[str, Array], slots: int, ndim: int, *, has_slots: bool
    ) -> dict[str, Array]:
        """Arrays of `SumSlots`. `form`: a state, with the axes of a stack, and perhaps of slots."""
        arrays = {
            f"states/{name}": jnp.zeros(
                (*x.shape[:ndim], slots, *x.shape[ndim + has_slots :]), x.dtype
            )
            for name, x in form.items()
        }
        stack = next(iter(form.values())).shape[:ndim]
        empty = jnp.full((*stack, slots), jnp.nan).at[..., 0].set(0)
        return {**arrays, "scale": empty, "slot": jnp.zeros(stack, jnp.int32)}

    @property
    def term(self) -> Term:
        """The states, with the axis of slots behind the axes of a stack."""
        return Term(self.states, self.rank, self.alpha)

    def at_higher_rank(self, rank: int) -> "SumSlots":
        """The same adapters with at least this rank."""
        if (self.rank or 0) >= rank:
            return self
        cls: Any = type(self)
        term = cls.at_rank(self.term, rank, self.stack_ndim(self.base) + 1)
        return cls(self.base, dict(term.state), self.scale, self.slot, term.rank, term.alpha)

    def __call__(self, *args: PyTree, **kwargs: PyTree) -> PyTree:
        """The output of the adapter in `slot`; in slot 0, of the base itself, bit for bit."""
        base: PyTree = self.base
        outputs = base(*args, **kwargs), self.in_slot()(*args, **kwargs)
        return jax.tree.map(lambda b, y: jnp.where(self.slot == 0, b, y), *outputs)

    def merge(self) -> eqx.Module:
        return self.in_slot().merge()

    def in_slot(self) -> LoRAWrapper:
        """The adapter of `slot`, whose numbers are NaN if the slot is empty."""
        nearest = jnp.clip(self.slot, 0, len(self.scale) - 1)
        is_empty = (self.slot != nearest) | jnp.isnan(self.scale[nearest])
        state = {name: jnp.where(is_empty, jnp.nan, x[nearest]) for name, x in self.states.items()}
        return self.adapter.from_state(self.base, state, self.rank, self.alpha)


def slots_class(adapter: type[LoRAWrapper], layer: PyTree) -> Any:
    """The slots for an adapter class around `layer`: of its `sum_of` or layer kind, or `None`."""
    if adds_up(adapter):
        return _slots_of_sums(adapter)
    kind = kind_for(adapter, layer)
    return None if kind is None else _slots_of_kind(kind)


@functools.cache
def _slots_of_kind(kind: type[LayerKind]) -> type[Slots]:
    classes = {cls.kind: cls for cls in (SlotsLinear, SlotsEmbedding, SlotsRecurrent)}
    return classes.get(kind) or next(iter(adapters_for(kind, __name__, methods=[Slots]).values()))


@functools.cache
def _slots_of_sums(adapter: type[LoRAWrapper]) -> type[SumSlots]:
    body = {"adapter": adapter, "mergeable": adapter.mergeable, "__module__": __name__}
    return type(f"SlotsOf{adapter.__name__}", (SumSlots,), body)


def layers_with_slots(model: PyTree) -> Iterator[tuple[str, Any]]:
    return (pair for pair in adapted_layers(model) if isinstance(pair[1], Slots | SumSlots))
