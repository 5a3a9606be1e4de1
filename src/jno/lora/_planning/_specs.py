"""Specs, as users write them, and the rules that they become: parsed and checked."""

import dataclasses
import math
import numbers
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from .._contract import LoRAWrapper, check_contract, is_whole, takes
from .._errors import SelectionError, WrapperError
from .._paths import nearest
from .._registry import Registry
from ._masks import compiled

# The values that `wrapper=` accepts.
WrapperLike: TypeAlias = type[LoRAWrapper] | str | Sequence[type[LoRAWrapper] | str] | None

# Adapters in order of priority. Those of one tier have equal priority.
Tiers: TypeAlias = tuple[tuple[type[LoRAWrapper], ...], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec:
    """One entry of `specs=`: which layers get which adapter. `None` is filled in by the call.

    **Arguments:**

    - `target`: a regex, searched in the slash-joined path of each layer. `None` is every layer.
    - `rank`, `alpha`: of the adapters.
    - `wrapper`: an adapter class, a registered name or variant, a list of those in order of
        priority, or `"auto"`.
    - `options`: further keyword arguments for the adapters' constructors.
    """

    target: str | re.Pattern[str] | None = None
    rank: int | None = None
    alpha: float | None = None
    wrapper: WrapperLike = None
    options: Mapping[str, Any] | None = None


SpecLike: TypeAlias = Spec | Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Rule:
    """A spec, parsed: layers whose path matches `target` get one of `tiers`, with this rank."""

    target: re.Pattern[str] | None
    rank: int | None  # of adapters that take one
    alpha: float
    tiers: Tiers
    options: Mapping[str, Any]
    label: str  # its name in messages

    def matches(self, path: str) -> bool:
        """Whether the target is found in `path`."""
        return self.target is None or self.target.search(path) is not None

    def describe(self) -> str:
        """For messages: the label, the target and the adapters."""
        target = "every layer" if self.target is None else f"target {self.target.pattern!r}"
        names = ", ".join(cls.__name__ for tier in self.tiers for cls in tier)
        return f"{self.label} ({target}, wrapper {names})"


def parse_specs(
    registry: Registry, specs: Iterable[SpecLike] | None, call: Spec
) -> tuple[Rule, ...]:
    """The rules of a call, in order of priority.

    **Arguments:**

    - `call`: the arguments of the call, which fill in what a spec lacks. Without `specs`, they are
        the only rule.

    **Raises:** `SelectionError` for an unknown spec key, an invalid regex or rank, an unknown or
    empty wrapper; `PluginError` if a plugin that is asked for cannot be used; `WrapperError` if a
    class breaks the contract.
    """
    if call.rank is not None:
        _check_rank(call.rank, "the call")
    if specs is None:
        return (_parse(registry, call, "the call", "target"),)
    if call.target is not None:
        raise SelectionError(
            "`target` and `specs` were both given. Put the target into each spec: "
            f'specs=[{{"target": {call.target!r}, ...}}]'
        )
    if isinstance(specs, Mapping | Spec):
        what = "Spec" if isinstance(specs, Spec) else "dict"
        raise SelectionError(
            f"`specs` must be a list of dicts, or of `Spec`s, but a single {what} came: "
            "specs=[{...}]"
        )
    if isinstance(specs, str) or not isinstance(specs, Iterable):
        raise SelectionError(f"`specs` must be a list of dicts, but is {specs!r}.")
    rules: list[Rule] = []
    for index, given in enumerate(specs):
        label = f"specs[{index}]"
        said = {k: v for k, v in vars(_as_spec(given, label)).items() if v is not None}
        spec = dataclasses.replace(call, **said)
        rules.append(_parse(registry, spec, label, f"{label}['target']"))
    if not rules:
        raise SelectionError("`specs` is empty. Give at least one spec, or leave it out.")
    return tuple(rules)


def _as_spec(given: Any, label: str) -> Spec:
    if isinstance(given, Spec):
        return given
    if not isinstance(given, Mapping):
        raise SelectionError(f"{label} must be a dict or a `jno.lora.Spec`, but is {given!r}")
    known = [field.name for field in dataclasses.fields(Spec)]
    for key in given:
        if key not in known:
            raise SelectionError(
                f"{label} has an unknown key {key!r}; did you mean "
                f"{nearest(str(key), known, n=1)[0]!r}? A spec has the keys {', '.join(known)}."
            )
    return Spec(**given)


def _parse(registry: Registry, spec: Spec, label: str, target: str) -> Rule:
    tiers = parse_wrapper(registry, spec.wrapper)
    takes_rank = any("rank" in takes(cls) for tier in tiers for cls in tier)
    if spec.rank is not None or takes_rank:
        _check_rank(spec.rank, label)
    return Rule(
        target=compiled(spec.target, target),
        rank=None if spec.rank is None else int(spec.rank),
        alpha=_checked_alpha(spec.alpha, label),
        tiers=tiers,
        options=_checked_options(spec.options, label),
        label=label,
    )


def parse_wrapper(registry: Registry, wrapper: WrapperLike) -> Tiers:
    """The adapter classes that `wrapper=` means, in tiers of equal priority."""
    is_auto = isinstance(wrapper, str) and wrapper == "auto"
    if wrapper is None or is_auto:
        defaults = registry.defaults()
        others = registry.auto() if is_auto else ()
        tiers = (*((cls,) for cls in defaults), tuple(cls for cls in others if cls not in defaults))
        return tuple(filter(None, tiers))
    if isinstance(wrapper, type):
        check_contract(wrapper)
        return ((wrapper,),)
    if isinstance(wrapper, str):
        return (registry.resolve(wrapper),)
    if isinstance(wrapper, set | frozenset | Mapping):
        raise SelectionError(
            f"`wrapper` must list adapters in order of priority, and a {type(wrapper).__name__} "
            f"has none: {wrapper!r}. Give a list."
        )
    if isinstance(wrapper, Iterable):
        tiers = tuple(tier for item in wrapper for tier in parse_wrapper(registry, item))
        if tiers:
            return tiers
        raise SelectionError("`wrapper` is an empty list. Name at least one adapter.")
    raise WrapperError(
        "`wrapper` must be an adapter class, a registered name or variant, a list of those, "
        f'"auto" or None, but is {wrapper!r}. (Pass the class itself, not an instance.)'
    )


def _check_rank(rank: Any, label: str) -> None:
    if not is_whole(rank) or rank < 1:
        came = "is missing" if rank is None else f"is {rank!r}"
        raise SelectionError(
            f"The rank of {label} must be an integer of at least 1, but {came}. Give `rank` "
            "in the call, or in the spec."
        )


def _checked_alpha(alpha: Any, label: str) -> float:
    what = f"The alpha of {label} must be a finite number, but is"
    try:
        if isinstance(alpha, numbers.Real) and math.isfinite(alpha):
            return float(alpha)
    except OverflowError as err:
        raise SelectionError(f"{what} too large for a float.") from err
    raise SelectionError(f"{what} {alpha!r}.")


def _checked_options(options: Any, label: str) -> Mapping[str, Any]:
    if options is None:
        return {}
    if not isinstance(options, Mapping):
        raise SelectionError(
            f"The options of {label} must be a dict of keyword arguments for the adapter's "
            f"constructor, such as {{'adapter_dtype': jnp.bfloat16}}, but are {options!r}."
        )
    # A NumPy number counts as an array, which a program that builds layers sees without its value.
    return {k: v.item() if isinstance(v, np.generic) else v for k, v in options.items()}
