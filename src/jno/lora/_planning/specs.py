"""Check specs as users write them, and parse them into rules."""

import dataclasses
import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import PyTree

from .._contract.checks import check_rank
from .._contract.constructing import takes
from .._contract.problems import check_contract
from .._contract.wrapper import LoRAWrapper
from .._errors import SelectionError
from .._peft_words import explain_unknown
from .._registry.open_functions import default_adapters
from .._registry.registry import Registry
from .candidates import Target, TargetLike, parse_target

WrapperLike: TypeAlias = type[LoRAWrapper] | str | Sequence[type[LoRAWrapper] | str] | None

AdapterClass: TypeAlias = type[LoRAWrapper]


@dataclasses.dataclass(frozen=True)
class Tier:
    """Adapters of equal priority."""

    classes: tuple[AdapterClass, ...] = ()

    def classes_for(self, layer: PyTree) -> tuple[AdapterClass, ...]:
        """The adapters to try on `layer`."""
        return default_adapters(layer) if self is DEFAULTS else self.classes


DEFAULTS = Tier()  # the adapters that are registered for the class of a layer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec:
    """One entry of `specs=`: which layers get which adapter. `None` means the call's value.

    **Arguments:** as for `apply_lora`.
    """

    target: TargetLike = None
    rank: int | None = None
    alpha: float | None = None
    wrapper: WrapperLike = None
    options: Mapping[str, Any] | None = None


SpecLike: TypeAlias = Spec | Mapping[str, Any]
_KEYS = tuple(field.name for field in dataclasses.fields(Spec))


@dataclasses.dataclass(frozen=True)
class Rule:
    """A parsed spec: layers whose path matches `target` get an adapter of one of `tiers`."""

    target: Target | None
    rank: int | None  # of adapters that take a rank
    alpha: float | None  # by default, `default_alpha` of the adapter
    tiers: tuple[Tier, ...]  # in order of priority
    options: Mapping[str, Any]
    label: str  # its name in messages
    named: frozenset[AdapterClass]  # the classes that the user names

    def matches(self, path: str) -> bool:
        return self.target is None or bool(self.target.search(path))


def parse_specs(
    registry: Registry, model: PyTree, specs: Iterable[SpecLike] | None, call: Spec
) -> tuple[Rule, ...]:
    """The rules of a call for `model`, in order of priority.

    - `call`: the arguments of the call, which fill in missing values of a spec. Without `specs`,
        they are the only rule.
    """
    if call.rank is not None:
        check_rank(call.rank, "The rank of the call")
    if specs is None:
        return (_parse(registry, model, call, "the call", "target"),)
    if call.target is not None:
        raise SelectionError(
            "`target` and `specs` were both given. Put the target into each spec: "
            f'specs=[{{"target": {call.target!r}, ...}}]'
        )
    if isinstance(specs, Mapping | Spec | str) or not isinstance(specs, Iterable):
        raise SelectionError(f"`specs` must be a list of specs, [{{...}}], but is {specs!r}.")
    rules: list[Rule] = []
    for index, given in enumerate(specs):
        label = f"specs[{index}]"
        if not isinstance(given, Mapping | Spec):
            raise SelectionError(f"{label} must be a dict or a `Spec`, but is {given!r}.")
        values = given if isinstance(given, Mapping) else vars(given)
        if unknown := [key for key in values if key not in _KEYS]:
            raise SelectionError(explain_unknown(f"{label}, a spec, has no", unknown, _KEYS))
        spec = dataclasses.replace(call, **{k: v for k, v in values.items() if v is not None})
        rules.append(_parse(registry, model, spec, label, f"{label}['target']"))
    if not rules:
        raise SelectionError("`specs` is empty. Give at least one spec, or leave it out.")
    return tuple(rules)


def _parse(registry: Registry, model: PyTree, spec: Spec, label: str, argument: str) -> Rule:
    tiers, named = _parse_wrapper(registry, spec.wrapper)
    if spec.rank is not None or any("rank" in takes(cls) for tier in tiers for cls in tier.classes):
        check_rank(spec.rank, f"The rank of {label}", " Give `rank` in the call, or in the spec.")
    alpha, options = spec.alpha, {} if spec.options is None else spec.options
    is_number = isinstance(alpha, numbers.Real) and not isinstance(alpha, bool)
    if alpha is not None and not (is_number and math.isfinite(alpha)):
        raise SelectionError(f"The alpha of {label} must be a finite number, but is {alpha!r}.")
    if not isinstance(options, Mapping):
        raise SelectionError(
            f"The options of {label} must be a dict of keyword arguments for the adapter's "
            f"constructor, such as {{'adapter_dtype': jnp.bfloat16}}, but are {options!r}."
        )
    return Rule(
        target=parse_target(model, spec.target, argument),
        rank=None if spec.rank is None else int(spec.rank),
        alpha=None if alpha is None else float(alpha),
        tiers=tiers,
        # A NumPy number counts as an array, whose value a program that builds layers cannot read.
        options={k: v.item() if isinstance(v, np.generic) else v for k, v in options.items()},
        label=label,
        named=named,
    )


def _parse_wrapper(
    registry: Registry, wrapper: WrapperLike
) -> tuple[tuple[Tier, ...], frozenset[AdapterClass]]:
    """The adapters that `wrapper=` means: classes, names, variants, the default or `"auto"`.

    **Returns:** the tiers, and the classes in them that the user named.
    """
    tiers: list[Tier] = []
    named: set[AdapterClass] = set()
    for item in _items_of(wrapper):
        if item is None or item == "auto":
            defaults = registry.defaults()
            auto = registry.auto() if item == "auto" else ()
            tiers += [*(Tier((cls,)) for cls in defaults), DEFAULTS]
            tiers += _by_precedence(registry, [cls for cls in auto if cls not in defaults])
        elif isinstance(item, str):
            classes = registry.resolve(item)
            tiers += _by_precedence(registry, classes)
            if [cls.__name__ for cls in classes] == [item.rpartition(":")[2]]:
                named.update(classes)
        else:
            check_contract(item)
            tiers.append(Tier((item,)))
            named.add(item)
    return tuple(tiers), frozenset(named)


def _items_of(wrapper: Any) -> list[Any]:
    """The classes and words in `wrapper=`, in order of priority; `None` for the default."""
    is_list = isinstance(wrapper, Iterable) and not isinstance(wrapper, type | str)
    items = list(wrapper) if is_list else [wrapper]
    if not items or isinstance(wrapper, set | frozenset | Mapping):
        raise SelectionError(
            f"`wrapper` must name an adapter, or list adapters in order of priority: {wrapper!r}"
        )
    return items


def _by_precedence(registry: Registry, classes: Iterable[AdapterClass]) -> list[Tier]:
    """The registered classes in tiers: of the zoo, of our other plugins, of third parties.

    So a plugin cannot take a layer from an adapter of the zoo that has the same variant.
    """
    tiers: dict[int, list[AdapterClass]] = {}
    for cls in classes:
        provider = registry.provider(cls)
        assert provider is not None
        tiers.setdefault(provider.precedence, []).append(cls)
    return [Tier(tuple(tiers[precedence])) for precedence in sorted(tiers)]
