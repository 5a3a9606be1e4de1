"""`AdapterBank`: many adapters of one model, in the slots of one program."""

import operator
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import PyTree

from jno.lora import (
    AdapterSet,
    SelectionError,
    load_adapters,
    lora_trainable_filter,
    read_adapters,
)
from jno.lora.extending import adapted_layers, bullets, expect_model

from ._growth import axis_size, grown, room_for
from ._running import at_slot, call_batch, call_one, check_names, in_slot
from ._state import Snapshot, State
from ._training import slots_to_train, slotwise
from ._values import Values, joined_sums, values_of, with_factors, without_factors

Source = AdapterSet | str | os.PathLike[str]


class AdapterBank:
    """One model with many adapters, each in a slot.

    One batch may use all adapters, because the products with the weights of the model run once for
    the whole batch. Slot 0 is the model alone.

        bank = AdapterBank(model, {"style": style}, slots=64)
        bank.add("topic.safetensors", name="topic")
        bank.run(["topic", "style", None, "topic"], xs)

    Adding and removing adapters does not compile again, unless an adapter needs more room than
    there is: slots (their number doubles), rank, another layer, or a scale of outputs (DoRA, IA3).
    Several threads may call the methods of a bank. A method that raises an error changes nothing.

    **Arguments:**

    - `model`: a plain model, which the bank keeps.
    - `sets`: sets of adapters or files, by name. The names of a list are "0", "1", and so on.
    - `slots`: how many adapters there is room for at first. By default the number of `sets`.
    - `rank`: the smallest rank that the slots have room for. Lower ranks are padded with zeros.
    - `fixed`: raise an error for an adapter that needs more room, instead of making room.
    - `axis`: the axis of the model's mesh over which the slots are split at rest. By default every
        device has all slots, with the rows or columns of the factors for its part of the weight.

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
            sets = {str(index): adapters for index, adapters in enumerate(sets)}
        slots = len(sets) if slots is None else slots
        for name, number, least in (("slots", slots, 0), ("rank", rank, 1)):
            if isinstance(number, bool) or not isinstance(number, int) or number < least:
                raise SelectionError(f"`{name}` must be an int from {least}, but is {number!r}.")
        devices = 1 if axis is None else axis_size(model, axis)
        capacity = -(-(1 + max(slots, len(sets))) // devices) * devices  # a multiple of `devices`
        self._plain, self._rank, self._axis = model, rank, axis
        self._lock = threading.RLock()
        self._state = State.of(model, MappingProxyType({}), tuple(range(1, capacity)))
        self._sets: dict[str, AdapterSet] = {}  # without their factors, which are in the slots
        self._partitioned: list[Any] | None = None
        self._fixed = False
        for name, adapters in sets.items():
            self.add(adapters, name)
        self._fixed = fixed

    def add(self, adapters: Source, name: str, *, prove: bool = False) -> int:
        """Put adapters into the slot that has been empty longest.

        **Arguments:**

        - `adapters`: a set, or the path of a file that `save_adapters` wrote.
        - `name`: a new name.
        - `prove`: whether to call the bank's model with the adapters of the file on the inputs of
            the file's proof first, as `load_adapters` does.

        **Returns:** the slot.

        **Raises:** `SelectionError` for a name that is taken; if the adapters do not fit the model
        or a slot; or if they need more room than a `fixed` bank has. `CheckpointError` as in
        `read_adapters`; with `prove`, also if the adapters do not act.
        """
        if not isinstance(name, str):
            raise SelectionError(f"`name` must be a str, but is {name!r}.")
        if prove:
            if isinstance(adapters, AdapterSet):
                raise SelectionError("`prove` needs the path of a file: a set has no proof.")
            load_adapters(self._plain, adapters, prove=True)
        adapters, values = self._read(adapters)
        with self._lock:
            if name in self.slots:
                raise SelectionError(
                    f"The bank has an adapter {name!r} already. Give another name, or "
                    f"bank.replace({name!r}, adapters)."
                )
            return self._put(name, adapters, values)

    def replace(self, name: str, adapters: Source) -> int:
        """Put new adapters into the slot of `name`. **Returns** and **Raises:** as `add`."""
        adapters, values = self._read(adapters)
        with self._lock:
            self._state.snapshot.slot(name)
            return self._put(name, adapters, values)

    def remove(self, name: str) -> None:
        """Empty the slot of `name`. Examples that still use its number get NaN.

        **Raises:** `SelectionError` if there is no such adapter.
        """
        with self._lock:
            self._state.snapshot.slot(name)
            self._state = self._state.emptied(name)
            del self._sets[name]

    def adapters(self, name: str) -> AdapterSet:
        """The adapters of `name` in their own classes, as trained, to save or to combine.

        **Raises:** `SelectionError` if there is no such adapter.
        """
        with self._lock:
            slot = self._state.snapshot.slot(name)
            return with_factors(self._sets[name], partial(self._state.in_slot, slot))

    @property
    def slots(self) -> Mapping[str, int]:
        """The slot of each adapter, by name."""
        return self._state.slots

    @property
    def capacity(self) -> int:
        """How many adapters there is room for without compiling again."""
        return self._state.capacity - 1

    def snapshot(self) -> Snapshot:
        """The bank as it is now, for your programs.

        The next change copies the arrays of all slots, because the snapshot keeps the old arrays.
        """
        with self._lock:
            self._state = self._state._replace(is_shared=True)
            return self._state.snapshot

    def __call__(self, *args: PyTree) -> PyTree:
        """`bank(x, slot)`: the model's output for one example, perhaps under `vmap`.

        The slot is an index, or the name of an adapter.

        **Raises:** `SelectionError` as `at_slot`, or inside `jit`, whose program would keep the
        current adapters.
        """
        *inputs, slot = args
        with self._lock:
            snapshot = self._to_call(args)
            if slot is None or isinstance(slot, str):
                model = in_slot(snapshot.model, snapshot.slot(slot))
            else:
                model = at_slot(snapshot.model, slot)
            return call_one(model, *inputs)

    def run(
        self,
        names: Sequence[str | None],
        *args: PyTree,
        function: Callable[..., Any] | None = None,
    ) -> PyTree:
        """The outputs for a batch, each example with the adapter of its name, by one program.

        **Arguments:**

        - `names`: the name of the adapter of each example; `None` means the base alone.
        - `args`: the arguments of the model: arrays, or trees of them, with the axis of the
            examples in front.
        - `function`: called with the model and the arguments of one example, instead of the model.
            Give the same object each time, because another object compiles again.

        **Raises:** `SelectionError` for an unknown name; if the numbers of names and examples
        differ; or inside `jit`, as a call.
        """
        check_names(names, args)
        with self._lock:
            snapshot = self._to_call(args)
            slots = snapshot.indices(names)
            return call_batch(snapshot.model, slots, args, function or operator.call)

    def partition(self) -> tuple[PyTree, PyTree]:
        """`(trainable, frozen)`: the factors of all slots, and everything else.

        `eqx.combine` joins them to the model again, for `at_slot`. Train with `optimiser`. The bank
        uses the same arrays, so copy them before a step of yours that donates them.
        """
        with self._lock:
            model = self.snapshot().model
            self._partitioned = self._state.leaves
            return eqx.partition(model, lora_trainable_filter(model))

    def update(self, trainable: PyTree) -> None:
        """Put trained factors into the bank.

        **Raises:** `SelectionError` if the bank was changed since `partition`, or if `trainable`
        has a different structure.
        """
        with self._lock:
            if self._partitioned is not self._state.leaves:
                raise SelectionError(
                    "The bank was changed after partition(), or partition() was never called. The "
                    "trained factors would undo the change: finish training, then change the bank."
                )
            model = self._state.snapshot.model
            factors = eqx.filter(model, lora_trainable_filter(model))
            if _form_of(trainable) != _form_of(factors):
                raise SelectionError(
                    "`trainable` must be the tree that partition() returned, with other values."
                )
            leaves = jax.tree.leaves(eqx.combine(trainable, model))
            self._state = self._state._replace(leaves=leaves, is_shared=True)
            self._partitioned = leaves

    def optimiser(self, make: Callable[[Any], Any], rates: Mapping[str, float]) -> Any:
        """An optimiser (of optax) with a separate state and learning rate for each slot.

            optimiser = bank.optimiser(optax.adamw, {"style": 1e-3, "topic": 3e-4})
            trainable, frozen = bank.partition()
            state = optimiser.init(trainable)

        Norms, counts and everything else that `make` computes are separate for each slot. Factors
        that their method freezes (`A` of LoRA-FA) do not change.

        **Arguments:**

        - `make`: a function from a learning rate, which is traced, to an optimiser.
        - `rates`: the learning rates of the adapters that train, by name.

        The optimiser fits only the current slots: make a new optimiser after a change of the bank.

        **Raises:** `SelectionError` for an unknown name; for a rate that is not a number; or for an
        adapter that is more than a product of its own factors (PiSSA, DoRA), which a net can train.
        """
        with self._lock:
            slot_rates, moving = slots_to_train(self._state, rates, self._sets)
        return slotwise(make, slot_rates, moving)

    def _to_call(self, args: PyTree) -> Snapshot:
        """The bank for a program that runs at once, with these arguments."""
        if isinstance(jnp.zeros(()), Tracer):
            raise SelectionError(
                "A bank was called inside jit, whose program would keep the current adapters. Give "
                "the program the model: f(bank.snapshot().model, xs, slots), with "
                "at_slot(model, slot)(x) inside."
            )
        # The backward pass of a derivative needs the arrays of the bank.
        is_traced = any(isinstance(x, Tracer) for x in jax.tree.leaves(args))
        return self.snapshot() if is_traced else self._state.snapshot

    def _read(self, adapters: Source) -> tuple[AdapterSet, dict[str, Values]]:
        if isinstance(adapters, str | os.PathLike):
            adapters = read_adapters(adapters)
        adapters = joined_sums(self._plain, adapters)
        return adapters, values_of(self._plain, adapters)

    def _put(self, name: str, adapters: AdapterSet, values: Mapping[str, Values]) -> int:
        """Write the values into the slot of `name` or an empty slot, making room if needed."""
        state = self._state
        rooms, lacking = room_for(state, adapters, values, self._rank)
        if name not in state.slots and not state.free:
            slot = f"an empty slot (all {self.capacity} are in use): bank.remove(name) makes one"
            lacking = [slot, *lacking]
            state = state._replace(free=tuple(range(state.capacity, 2 * state.capacity)))
        if lacking and self._fixed:
            raise SelectionError(
                f"The bank is fixed, and the adapters need more room:\n{bullets(lacking)}\n"
                f"Or make a new bank with them: AdapterBank(model, {{{name!r}: adapters}})."
            )
        values = {path: new.at_rank(rooms[path].rank) for path, new in values.items()}
        if lacking:
            state = grown(state, self._plain, rooms, self._axis, values)
        arrays = {path: new.arrays for path, new in values.items()}
        state.check_forms(arrays)
        self._state = state.filled(name, arrays)
        self._sets[name] = without_factors(adapters)
        return self._state.slots[name]


def _form_of(tree: PyTree) -> tuple[Any, list[Any]]:
    return jax.tree.structure(tree), [(x.shape, x.dtype) for x in jax.tree.leaves(tree)]
