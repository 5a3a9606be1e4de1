"""`AdapterBank`: many adapters of one model, in the slots of one program."""

import dataclasses
import operator
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax.core import Tracer
from jaxtyping import PyTree

from jno.lora import (
    AdapterSet,
    SelectionError,
    lora_trainable_filter,
    read_adapters,
)
from jno.lora.extending import (
    adapted_layers,
    bullets,
    expect_model,
    show_path,
)
from jno.lora.types import LooseAdapter

from ._slots import Slots, at_slot, slots_class
from ._state import OPTIONAL, Form, Snapshot, State, axis_size, banked
from ._training import slotwise
from ._values import Values, is_product, values_of

# The field of `Slots` for each factor of a product.
_FIELDS = {"lora_A": "lora_A", "lora_B": "lora_Bt"}

Source = AdapterSet | str | os.PathLike[str]


class AdapterBank:
    """One model with many adapters, each in a slot of its own.

    A batch may use all of them: the products with the weights of the model run once, over the whole
    batch. Slot 0 is the model alone.

        bank = AdapterBank(model, {"style": style}, slots=64)
        bank.add("topic.safetensors", name="topic")
        bank.run(["topic", "style", None, "topic"], xs)

    Nothing compiles again when adapters come and go, until one needs more than there is: slots
    (their number doubles), rank, another layer, or a scale of outputs (DoRA, IA3). Methods may be
    called from several threads. One that raises an error has changed nothing.

    **Arguments:**

    - `model`: a plain model. The bank keeps it.
    - `sets`: sets of adapters or files, by name. Those of a list are named "0", "1", and so on.
    - `slots`: the number of adapters that there is room for at first. By default that of `sets`.
    - `rank`: the smallest rank that the slots have room for. Zeros fill up lower ranks.
    - `fixed`: refuse an adapter that needs more room, instead of making it.
    - `axis`: the axis of the model's mesh over which the slots are split at rest. By default every
        device has all slots, with the part of their factors that belongs to its part of the weight.

    **Raises:** `SelectionError` if `model` is adapted, or has no such mesh axis; or as `add`.
    """

    def __init__(
        self,
        model: PyTree,
        sets: Mapping[str, Source] | Sequence[Source] = (),
        *,
        slots: int | None = None,
        rank: int = 1,
        fixed: bool = False,
        axis: str | None = None,
    ):
        expect_model(model, "AdapterBank")
        if any(adapted_layers(model)):
            raise SelectionError(
                "The model of a bank must be plain, but carries adapters. Take them out: "
                "AdapterBank(unwrap_lora(model), {'name': extract_adapters(model)})"
            )
        if not isinstance(sets, Mapping):
            if isinstance(sets, AdapterSet | str | os.PathLike):
                raise SelectionError("`sets` must be a list, or a dict by name, of sets or files.")
            sets = {str(index): one for index, one in enumerate(sets)}
        slots = len(sets) if slots is None else slots
        for what, number, least in (("slots", slots, 0), ("rank", rank, 1)):
            if isinstance(number, bool) or not isinstance(number, int) or number < least:
                raise SelectionError(f"`{what}` must be an int from {least}, but is {number!r}.")
        self._plain, self._rank, self._fixed, self._axis = model, rank, False, axis
        self._lock = threading.RLock()
        parts = 1 if axis is None else axis_size(model, axis)
        capacity = -(-(1 + max(slots, len(sets))) // parts) * parts
        free = tuple(range(1, capacity))
        self._state = State.of(model, MappingProxyType({}), free)
        self._origins: dict[str, AdapterSet] = {}
        self._is_shared = True  # whether somebody else may hold the arrays of the state
        self._partitioned: State | None = None
        for name, one in sets.items():
            self.add(one, name)
        self._fixed = fixed

    def add(self, adapters: Source, name: str) -> int:
        """Put adapters into an empty slot, the one that has been empty for longest.

        **Arguments:**

        - `adapters`: a set, or the path of a file that `save_adapters` wrote.
        - `name`: a new one.

        **Returns:** the slot.

        **Raises:** `SelectionError` for a name that is taken; if the adapters do not fit the model,
        or a slot; or if they need more room than a `fixed` bank has. `CheckpointError` as
        `read_adapters`.
        """
        if not isinstance(name, str):
            raise SelectionError(f"`name` must be a str, but is {name!r}.")
        adapters, values = self._values(adapters)
        with self._lock:
            if name in self._state.slots:
                raise SelectionError(
                    f"The bank has an adapter {name!r} already. Give another name, or "
                    f"bank.replace({name!r}, adapters)."
                )
            state = self._with_room(adapters, values, 1)
            slot, *free = state.free
            slots = MappingProxyType({**state.slots, name: slot})
            self._write(state._replace(slots=slots, free=tuple(free)), slot, values)
            self._origins[name] = _skeleton(adapters)
            return slot

    def replace(self, name: str, adapters: Source) -> int:
        """Put other adapters into the slot of `name`. **Returns** and **Raises:** as `add`."""
        adapters, values = self._values(adapters)
        with self._lock:
            slot = self._state.snapshot.slot(name)
            self._write(self._with_room(adapters, values, 0), slot, values)
            self._origins[name] = _skeleton(adapters)
            return slot

    def remove(self, name: str) -> None:
        """Empty the slot of `name`. An example that still has its number gets NaN.

        **Raises:** `SelectionError` if there is no such adapter.
        """
        with self._lock:
            slot = self._state.snapshot.slot(name)
            slots = {other: at for other, at in self._state.slots.items() if other != name}
            state = self._state._replace(
                slots=MappingProxyType(slots), free=(*self._state.free, slot)
            )
            empty = {
                path: {"scale": np.full(state.arrays(path)["scale"].shape[:-1], np.nan)}
                for path in state.places
            }
            # Only the scales are new, so that the rest is as shared as before.
            self._state = state.written(slot, empty, not self._is_shared)
            del self._origins[name]

    def adapters(self, name: str) -> AdapterSet:
        """The adapters of `name` as a set of their own classes, as trained: to save, or to combine.

        **Raises:** `SelectionError` if there is no such adapter.
        """
        with self._lock:
            slot, state = self._state.snapshot.slot(name), self._state
            origin = self._origins[name]
            found: dict[str, LooseAdapter] = {}
            for path, adapter in origin.adapters.items():
                own = dict(adapter.state)
                for field, shape in own.items():
                    if isinstance(shape, jax.ShapeDtypeStruct):
                        inside = tuple(slice(0, size) for size in shape.shape)
                        array = state.at(slot, path, _FIELDS[field])
                        array = array.mT if field == "lora_B" else array
                        own[field] = array[inside].astype(shape.dtype)
                found[path] = dataclasses.replace(adapter, state=own)
            return AdapterSet(found, origin.shared)

    @property
    def slots(self) -> Mapping[str, int]:
        """The slot of each adapter, by name."""
        return self._state.slots

    @property
    def capacity(self) -> int:
        """How many adapters there is room for without compiling anew."""
        return self._state.capacity - 1

    def snapshot(self) -> Snapshot:
        """The bank as it is now, for programs of your own.

        The next change copies the arrays of all slots, since the snapshot keeps the old ones.
        """
        with self._lock:
            self._is_shared = True
            return self._state.snapshot

    def __call__(self, *args: Any) -> Any:
        """`bank(x, slot)`: the model's output for one example, perhaps under `vmap`.

        The slot is an index, or the name of an adapter.

        **Raises:** `SelectionError` as `at_slot`, or inside `jit`, whose program would keep the
        adapters of now.
        """
        *inputs, slot = args
        with self._lock:
            now = self._now(args)
            if slot is None or isinstance(slot, str):
                model = _at_slot(now.model, now.slot(slot))
            else:
                model = at_slot(now.model, slot)
            # The slot is in the arrays of the model: a program has no constant for it.
            return _one(model, *inputs)

    def run(
        self, names: Sequence[str | None], *args: Any, function: Callable[..., Any] | None = None
    ) -> Any:
        """The outputs for a batch, each example with the adapter of its name, by one program.

        **Arguments:**

        - `names`: of the adapter of each example; `None` is the base alone.
        - `args`: the arguments of the model: arrays, or trees of them, with the axis of the
            examples in front.
        - `function`: called with the model and the arguments of one example, in the place of the
            model. Give the same object each time: another one compiles.

        **Raises:** `SelectionError` for an unknown name; if the number of examples is not that of
        the names; or inside `jit`, as a call.
        """
        arrays = [x for x in jax.tree.leaves(args) if isinstance(x, jax.Array | np.ndarray)]
        sizes = sorted({x.shape[:1] for x in arrays} - {(len(names),)})
        if isinstance(names, str) or sizes:
            came = f"is the string {names!r}" if isinstance(names, str) else f"has {len(names)}"
            if sizes and not isinstance(names, str):
                came += f", and first axes of the arguments have {', '.join(map(str, sizes))}"
            raise SelectionError(
                f"`names` must be a list with one name for each example, but {came}."
            )
        with self._lock:
            now = self._now(args)
            return _batch(now.model, now.indices(names), args, function or operator.call)

    def partition(self) -> tuple[PyTree, PyTree]:
        """`(trainable, frozen)`: the factors of all slots, and everything else.

        `eqx.combine` makes the model of them, for `at_slot`. Train with `optimiser`. The arrays are
        those of the bank: copy them before a step of yours that donates them.
        """
        with self._lock:
            model = self.snapshot().model
            self._partitioned = self._state
            return eqx.partition(model, lora_trainable_filter(model))

    def update(self, trainable: PyTree) -> None:
        """Put trained factors into the bank.

        **Raises:** `SelectionError` if the bank was changed since `partition`, or if `trainable`
        has another structure.
        """
        with self._lock:
            state = self._state
            if self._partitioned is not state:
                raise SelectionError(
                    "The bank was changed after partition(), or partition() was never called. The "
                    "trained factors would undo the change: finish training, then change the bank."
                )
            model = state.snapshot.model
            mine = eqx.filter(model, lora_trainable_filter(model))
            forms = [
                (jtu.tree_structure(it), [(x.shape, x.dtype) for x in jax.tree.leaves(it)])
                for it in (mine, trainable)
            ]
            if forms[0] != forms[1]:
                raise SelectionError(
                    "`trainable` must be the tree that partition() returned, with other values."
                )
            leaves = jax.tree.leaves(eqx.combine(trainable, model))
            self._state = self._partitioned = state._replace(leaves=leaves)
            self._is_shared = True

    def optimiser(self, make: Callable[[Any], Any], rates: Mapping[str, float]) -> Any:
        """An optimiser (of optax) that treats the slots apart: each has its own state and rate.

            optimiser = bank.optimiser(optax.adamw, {"style": 1e-3, "topic": 3e-4})
            trainable, frozen = bank.partition()
            state = optimiser.init(trainable)

        Norms, counts and everything else that `make` computes are those of one slot. Factors that
        their method freezes (`A` of LoRA-FA) do not move.

        **Arguments:**

        - `make`: a function from a learning rate, which is traced, to an optimiser.
        - `rates`: the learning rates of the adapters that train, by name.

        It is for the slots as they are now: make another one after a change of the bank.

        **Raises:** `SelectionError` for an unknown name; for a rate that is not a number; or for an
        adapter that is not a product of its own factors (PiSSA, VeRA, DoRA, IA3): `to_lora` makes a
        LoRA of it.
        """
        for name, rate in rates.items():
            if name is None or callable(rate):
                raise SelectionError(
                    f"`rates` must hold a number for the name of an adapter, but has {rate!r} for "
                    f"{name!r}. A schedule belongs into `make`: lambda rate: "
                    "optax.adam(lambda step: rate * schedule(step))"
                )
        with self._lock:
            state = self._state
            index = state.snapshot.indices(rates)
            trains = {
                state.name(path, field): np.zeros(state.capacity, bool)
                for path in state.places
                for field in Slots.adapter_fields
            }
            for name, slot in zip(rates, index, strict=True):
                for path, adapter in self._origins[name].adapters.items():
                    if not is_product(adapter) or "bias_update" in adapter.state:
                        raise SelectionError(
                            f"{name!r} cannot train in a bank: its {adapter.wrapper.__name__} at "
                            f"{show_path(path)!r} is more, or other, than a product of its own "
                            "factors. Add it as LoRA: extract_adapters(to_lora(...)[0])."
                        )
                    for field, of_slots in _FIELDS.items():
                        is_trained = field in adapter.wrapper.adapter_fields
                        trains[state.name(path, of_slots)][slot] = is_trained
            every = np.zeros(state.capacity)
            every[index] = [rates[name] for name in rates]
        return slotwise(make, every, trains)

    def _now(self, args: Any) -> Snapshot:
        """The bank for a program that runs at once, with these arguments."""
        if isinstance(jnp.zeros(()), Tracer):
            raise SelectionError(
                "A bank was called inside jit, whose program would keep the adapters of now. Give "
                "the program the model: f(bank.snapshot().model, xs, slots), with "
                "at_slot(model, slot)(x) inside."
            )
        # A derivative keeps arrays of the bank for its backward pass.
        self._is_shared |= any(isinstance(x, Tracer) for x in jax.tree.leaves(args))
        return self._state.snapshot

    def _values(self, adapters: Source) -> tuple[AdapterSet, dict[str, Values]]:
        if isinstance(adapters, str | os.PathLike):
            adapters = read_adapters(adapters)
        return adapters, values_of(self._plain, adapters)

    def _with_room(self, adapters: AdapterSet, values: Mapping[str, Values], slots: int) -> State:
        """The state, or a larger one, with room for the values and for more slots."""
        state = self._state
        forms, lacking = dict(state.forms), list[str]()
        if len(state.free) < slots:
            lacking.append(f"an empty slot (it has {state.capacity - 1}, all in use)")
        for path, new in values.items():
            cls: Any = slots_class(adapters[path].wrapper)
            own = Form(cls, max(self._rank, new["lora_A"].shape[-2]), OPTIONAL & new.keys())
            have = forms.setdefault(path, own)
            if have is own:
                lacking.append(f"slots in the layer {show_path(path)!r}")
            if have.cls is not cls:
                raise SelectionError(
                    f"{show_path(path)}: the {adapters[path].wrapper.__name__} sees the matrix of "
                    "the layer in another way than the adapters in the bank."
                )
            if own.rank > have.rank:
                lacking.append(f"rank {own.rank} at {show_path(path)!r} (it has {have.rank})")
            lacking += [
                f"a {field} of the outputs of {show_path(path)!r}"
                for field in sorted(own.fields - have.fields)
            ]
            forms[path] = Form(cls, max(own.rank, have.rank), own.fields | have.fields)
        if not lacking:
            return state
        if self._fixed:
            raise SelectionError(
                f"The bank is fixed, and the adapters need more room:\n{bullets(lacking)}\n"
                "Remove an adapter, cut the rank by to_lora(model, rank=...), or make a new bank."
            )
        free = state.free
        if len(free) < slots:
            free = (*free, *range(state.capacity, 2 * state.capacity))
        return state.grown(self._plain, forms, free, self._axis)

    def _write(self, state: State, slot: int, values: Mapping[str, Values]) -> None:
        is_own = not self._is_shared or state.leaves is not self._state.leaves
        self._state = state.written(slot, state.completed(values), is_own)
        self._is_shared = False  # all arrays of slots are new


def _skeleton(adapters: AdapterSet) -> AdapterSet:
    """The set without the factors of its products: the bank holds them."""

    def without(adapter: LooseAdapter) -> LooseAdapter:
        if not is_product(adapter):
            return adapter
        state = {
            name: jax.ShapeDtypeStruct(x.shape, x.dtype) if name in _FIELDS else x
            for name, x in adapter.state.items()
        }
        return dataclasses.replace(adapter, state=state)

    found = {path: without(adapter) for path, adapter in adapters.adapters.items()}
    return AdapterSet(found, adapters.shared)


_one = eqx.filter_jit(operator.call)


@eqx.filter_jit
def _batch(model: Any, index: Any, args: Any, function: Callable[..., Any]) -> Any:
    return eqx.filter_vmap(lambda slot, args: function(_at_slot(model, slot), *args))(index, args)


def _at_slot(model: Any, slot: Any) -> Any:
    """`at_slot`, or the model itself while no adapter was added."""
    return at_slot(model, slot) if any(banked(model)) else model
