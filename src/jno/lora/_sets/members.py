"""Named sets and their sums as the core sees them. A plugin adds sets up: `jno_lora_sums`."""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

from jaxtyping import PyTree

from .._contract.matrix_adapter import Composite, Member
from .._contract.wrapper import LoRAWrapper
from .set import AdapterSet

# The weights of the sets in a sum, by name.
Weights: TypeAlias = Mapping[str, Any] | Literal["train"] | None
# By the path of an adapter and of a leaf in it, whether the leaf trains.
Trains: TypeAlias = Mapping[str, Mapping[str, bool]]


@dataclasses.dataclass(frozen=True)
class NamedSet:
    """A set of adapters that has a name in a net.

    - `adapters`: empty while the set is active, because its arrays are in the model.
    - `trains`: which leaves of the adapted layers trained when the set left the model. Leaves
        without an entry train as in a new adapter.
    - `settings`: by path and field, the settings of an adapter that a set lacks, such as dropout.
    - `weights`: by the names of the sets in a sum, this set's weights in that sum, by path.
    - `identity`: the same object while the set keeps its structure, whatever its values.
    """

    adapters: AdapterSet = dataclasses.field(default_factory=lambda: AdapterSet({}))
    trains: Trains = dataclasses.field(default_factory=dict)
    settings: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    weights: Mapping[frozenset[str], Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    identity: object = dataclasses.field(default_factory=object)


@dataclasses.dataclass(frozen=True)
class NamedSets:
    """The named sets of a net.

    - `stored`: by name, oldest first.
    - `active`: the names of the sets in the model, in the order of a sum's weights.
    """

    stored: Mapping[str, NamedSet] = dataclasses.field(default_factory=dict)
    active: tuple[str, ...] = ()

    def having(self, sets: Mapping[str, NamedSet]) -> "NamedSets":
        """With these sets added, or in the place of the sets of the same names."""
        return NamedSets({**self.stored, **sets}, self.active)

    def activated(self, names: Iterable[str]) -> "NamedSets":
        """With these sets, new or stored, in the model, so that no second copy is kept."""
        empty, names = AdapterSet({}), tuple(names)
        sets = ((name, self.stored.get(name, NamedSet())) for name in names)
        active = {name: dataclasses.replace(x, adapters=empty) for name, x in sets}
        return NamedSets({**self.stored, **active}, names)

    def without(self, names: Collection[str]) -> "NamedSets":
        """Without the sets of these names."""
        stored = {name: x for name, x in self.stored.items() if name not in names}
        return NamedSets(stored, tuple(name for name in self.active if name not in names))


class SeveralAdapters(Composite):
    """The base class of a sum: several adapters of one layer, with a weight each.

    Its fields are `trained` and `frozen`, the members by name without their base, and `weights`, in
    the order of `members`. They train if `adapter_fields` names them.
    """


class Sums(NamedTuple):
    """What a plugin returns from the hook `jno_lora_sums`.

    - `activate`: `activate(model, sets, weights, train)` is the model with the sum of these sets,
        and which of its leaves train.
    - `deactivate`: `deactivate(model, trainable, sets)` are the sets of the sum in a model, with
        their values, weights and masks. `sets` are the sets as they were when they came in.
    - `split`: `split(adapters)` takes a set of sums apart into sets by name.
    """

    activate: Callable[
        [PyTree, Mapping[str, NamedSet], Weights, Collection[str]], tuple[PyTree, Trains]
    ]
    deactivate: Callable[[PyTree, PyTree[bool], Mapping[str, NamedSet]], dict[str, NamedSet]]
    split: Callable[[AdapterSet], dict[str, AdapterSet]]


class Proofs(NamedTuple):
    """What a plugin returns from the hook `jno_lora_provers`.

    - `record`: `record(model, inputs, names)` calls the model, and returns a function that puts the
        proof into a file, or a folder of PEFT, by its path. `names` has the name in the file of
        each path, where they differ, or is `None`.
    - `check`: `check(model, path, names)` raises a `CheckpointError` if the adapters do not act.
    """

    record: Callable[..., Callable[..., None]]
    check: Callable[..., None]


def members_of(cls: type[LoRAWrapper]) -> tuple[Member, ...]:
    """The adapters that `cls` adds up; none for a single adapter."""
    return cls.members if issubclass(cls, SeveralAdapters) else ()
