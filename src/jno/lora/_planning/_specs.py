"""Rules: which adapter of which rank goes around which layers, parsed and checked."""

import dataclasses
import math
import numbers
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from .._contract import LoRAWrapper, check_contract, is_whole
from .._errors import SelectionError, WrapperError
from .._paths import nearest
from .._registry import Registry
from ._regex import compiled

WrapperLike: TypeAlias = (
    type[LoRAWrapper] | str | Sequence[type[LoRAWrapper] | str] | None
)  # what `wrapper=` accepts
SpecLike: TypeAlias = Mapping[str, Any]

# Adapters in order of priority. Those of one tier have equal priority.
Tiers: TypeAlias = tuple[tuple[type[LoRAWrapper], ...], ...]

_SPEC_KEYS = ("target", "rank", "alpha", "wrapper", "options")


@dataclasses.dataclass(frozen=True)
class Spec:
    """One rule: the layers whose path matches `target` get one of `tiers`, with this rank."""

    target: re.Pattern[str] | None
    rank: int
    alpha: float
    tiers: Tiers
    options: Mapping[str, Any]  # further keyword arguments of the adapter's constructor
    label: str  # how messages refer to it

    def matches(self, path: str) -> bool:
        """Whether the target is found in `path`."""
        return self.target is None or self.target.search(path) is not None

    def describe(self) -> str:
        """For messages: what it asks for."""
        target = "every layer" if self.target is None else f"target {self.target.pattern!r}"
        names = ", ".join(cls.__name__ for tier in self.tiers for cls in tier)
        return f"{self.label} ({target}, wrapper {names})"


def parse_specs(
    registry: Registry,
    *,
    rank: int,
    alpha: float,
    target: str | None,
    wrapper: WrapperLike,
    specs: Iterable[SpecLike] | None,
    options: Mapping[str, Any] | None,
) -> tuple[Spec, ...]:
    """The rules that the arguments of a call amount to, in order of priority.

    **Raises:** `SelectionError` for an unknown spec key, an invalid regex or rank, an unknown or
    empty wrapper; `PluginError` if a plugin that is asked for cannot be used; `WrapperError` if a
    class breaks the contract.
    """
    if specs is None:
        return (
            Spec(
                target=compiled(target, "target"),
                rank=_checked_rank(rank, "the call"),
                alpha=_checked_alpha(alpha, "the call"),
                tiers=parse_wrapper(registry, wrapper),
                options=_checked_options(options, "the call"),
                label="the call",
            ),
        )
    if target is not None:
        raise SelectionError(
            "`target` and `specs` were both given. Put the target into each spec: "
            f'specs=[{{"target": {target!r}, ...}}]'
        )
    if isinstance(specs, Mapping):
        raise SelectionError(
            "`specs` must be a list of dicts, but a single dict came: specs=[{...}]"
        )
    if isinstance(specs, str) or not isinstance(specs, Iterable):
        raise SelectionError(f"`specs` must be a list of dicts, but is {specs!r}.")
    parsed: list[Spec] = []
    for index, spec in enumerate(specs):
        label = f"specs[{index}]"
        if not isinstance(spec, Mapping):
            raise SelectionError(f"{label} must be a dict, but is {spec!r}")
        for key in spec:
            if key not in _SPEC_KEYS:
                near = nearest(str(key), _SPEC_KEYS, n=1)[0]
                raise SelectionError(
                    f"{label} has an unknown key {key!r}; did you mean {near!r}? "
                    f"A spec has the keys {', '.join(_SPEC_KEYS)}."
                )
        rule = Spec(
            target=compiled(spec.get("target"), f"{label}['target']"),
            rank=_checked_rank(_given(spec, "rank", rank), label),
            alpha=_checked_alpha(_given(spec, "alpha", alpha), label),
            tiers=parse_wrapper(registry, spec.get("wrapper", wrapper)),
            options=_checked_options(_given(spec, "options", options), label),
            label=label,
        )
        parsed.append(rule)
    if not parsed:
        raise SelectionError("`specs` is empty. Give at least one spec, or leave it out.")
    return tuple(parsed)


def parse_wrapper(registry: Registry, wrapper: WrapperLike) -> Tiers:
    """The adapter classes that `wrapper=` means, in tiers of equal priority."""
    if wrapper is None:
        return tuple((cls,) for cls in registry.defaults())
    if isinstance(wrapper, type):
        check_contract(wrapper)
        return ((wrapper,),)
    if isinstance(wrapper, str):
        if wrapper == "auto":
            defaults = registry.defaults()
            others = tuple(cls for cls in registry.auto() if cls not in defaults)
            return (*((cls,) for cls in defaults), *((others,) if others else ()))
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


def _checked_rank(rank: Any, label: str) -> int:
    if not is_whole(rank) or rank < 1:
        raise SelectionError(
            f"The rank of {label} must be an integer of at least 1, but is {rank!r}. Give `rank` "
            "in the call, or in the spec."
        )
    return int(rank)


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


def _given(spec: SpecLike, key: str, otherwise: Any) -> Any:
    """What the spec says, or what the call says if the spec says nothing (or `None`)."""
    value = spec.get(key)
    return otherwise if value is None else value
