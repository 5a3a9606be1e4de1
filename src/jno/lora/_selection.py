"""What the arguments of `lora` select: wrappers, targets, specs and masks, parsed and checked."""

import dataclasses
import math
import numbers
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import equinox as eqx
import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree

from ._contract import LoRAWrapper
from ._contract_problems import check_contract
from ._errors import SelectionError, WrapperError
from ._paths import KeyPath, nearest, path_str, show_path
from ._registry import Registry

WrapperLike: TypeAlias = (
    type[LoRAWrapper] | str | Sequence[type[LoRAWrapper] | str] | None
)  # what `wrapper=` accepts
SpecLike: TypeAlias = Mapping[str, Any]
MaskLike: TypeAlias = PyTree | str | re.Pattern[str]

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
                target=_regex(target, "target"),
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
            target=_regex(spec.get("target"), f"{label}['target']"),
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
    if isinstance(wrapper, Iterable):
        tiers = tuple(tier for item in wrapper for tier in parse_wrapper(registry, item))
        if tiers:
            return tiers
        raise SelectionError("`wrapper` is an empty list. Name at least one adapter.")
    raise WrapperError(
        "`wrapper` must be an adapter class, a registered name or variant, a list of those, "
        f'"auto" or None, but is {wrapper!r}. (Pass the class itself, not an instance.)'
    )


@dataclasses.dataclass(frozen=True)
class Mask:
    """Which nodes hold a selected leaf. Nodes are known by their path, never by identity."""

    prefixes: frozenset[KeyPath] | None

    def selects(self, keys: KeyPath) -> bool:
        """Whether any leaf below `keys` is selected."""
        return self.prefixes is None or keys in self.prefixes

    @classmethod
    def of(cls, mask: PyTree[bool] | None) -> "Mask":
        """From a mask that `parse_mask` returned; `None` selects everything."""
        if mask is None:
            return cls(None)
        selected = (keys for keys, leaf in jtu.tree_flatten_with_path(mask)[0] if leaf)
        return cls(frozenset(keys[:n] for keys in selected for n in range(len(keys) + 1)))


def parse_mask(model: PyTree, mask: MaskLike) -> PyTree[bool]:
    """A mask as Python bools in the exact structure of `model`.

    **Arguments:**

    - `model`: the model.
    - `mask`: bools in the structure of `model` or of a prefix of it (one bool for a whole
        subtree), or a regex that is searched in the path of every leaf.

    **Raises:** `SelectionError` that names the path at which the structures part, or the leaf that
    is not a bool.
    """
    if isinstance(mask, str | re.Pattern):
        pattern = _regex(mask, "mask")
        assert pattern is not None
        return jtu.tree_map_with_path(
            lambda keys, _: pattern.search(path_str(keys)) is not None, model
        )
    # `None` stands where `eqx.filter` took out what is no array: it selects nothing.
    leaves, treedef = jtu.tree_flatten_with_path(mask, is_leaf=lambda node: node is None)
    for keys, leaf in leaves:
        if leaf is not None and not (isinstance(leaf, bool | np.bool_) or _is_scalar_bool(leaf)):
            raise SelectionError(
                f"A mask holds one bool per leaf (or subtree), but has {_brief(leaf)} at "
                f"{show_path(path_str(keys))!r}. To select whole layers by name, give a regex: "
                '.mask("encoder")'
            )
    try:
        subtrees = treedef.flatten_up_to(model)
    except ValueError as err:
        raise SelectionError(_mismatch(model, mask)) from err
    bools: list[bool] = []
    for (_, value), subtree in zip(leaves, subtrees, strict=True):
        covered = jtu.tree_leaves(subtree)
        if value is None and any(map(eqx.is_array, covered)):
            raise SelectionError(_mismatch(model, mask))
        bools += [bool(value)] * len(covered)
    return jtu.tree_unflatten(jtu.tree_structure(model), bools)


def _mismatch(model: PyTree, mask: PyTree) -> str:
    of_model = [path_str(keys) for keys, _ in jtu.tree_flatten_with_path(model)[0]]
    of_mask = [path_str(keys) for keys, _ in jtu.tree_flatten_with_path(mask)[0]]
    alien = [p for p in of_mask if not any(m == p or m.startswith(f"{p}/") for m in of_model)]
    missing = [m for m in of_model if not any(m == p or m.startswith(f"{p}/") for p in of_mask)]
    if alien:
        where = f"it has a leaf at {show_path(alien[0])!r}, the model has none there"
    elif missing:
        where = f"the model has a leaf at {show_path(missing[0])!r}, the mask has none"
    else:
        where = "the paths agree, but the classes or static fields of the nodes differ"
    return (
        f"The mask has another structure than the model: {where}. Build it from the model as it "
        "is now, for example\n"
        "    mask = jax.tree.map(lambda _: False, net.module)\n"
        "    mask = eqx.tree_at(lambda m: m.encoder, mask, True)\n"
        'or give a regex on paths: .mask("encoder")'
    )


def _checked_rank(rank: Any, label: str) -> int:
    whole = isinstance(rank, numbers.Integral) and not isinstance(rank, bool)
    if not whole or rank < 1:
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


def _regex(pattern: Any, what: str) -> re.Pattern[str] | None:
    if pattern is None or isinstance(pattern, re.Pattern):
        return pattern
    if not isinstance(pattern, str):
        raise SelectionError(f"`{what}` must be a regex (a string), but is {pattern!r}.")
    try:
        return re.compile(pattern)
    except re.error as err:
        raise SelectionError(
            f"`{what}` is not a valid regex: {pattern!r}: {err}. It is searched in slash-joined "
            "paths such as 'encoder/layers/0'; escape special characters with a backslash."
        ) from err


def _is_scalar_bool(leaf: Any) -> bool:
    return getattr(leaf, "shape", None) == () and getattr(leaf, "dtype", None) == np.bool_


def _brief(leaf: Any) -> str:
    text = repr(leaf)
    return text if len(text) < 60 else f"a {type(leaf).__name__}"
