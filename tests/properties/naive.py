"""The layers that a call selects, written from the documentation and without regard to cost."""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import equinox as eqx
import jax
import numpy as np

import jno_lora_zoo as zoo
from jno.lora import LoRAWrapper

from .odd_nodes import Pile, Record

NORMS = (eqx.nn.WeightNorm, eqx.nn.SpectralNorm)
DEFAULTS = (zoo.LoRALinear, zoo.LoRAConv)


def is_array(leaf: Any) -> bool:
    """Whether it is an array, of JAX or of NumPy."""
    return isinstance(leaf, jax.Array | np.ndarray)


def is_container(node: Any) -> bool:
    """Whether JAX looks for leaves inside."""
    return isinstance(node, eqx.Module | Record | Pile | dict | list | tuple)


def children(node: Any) -> list[tuple[str, Any]]:
    """The nodes directly in `node`, by the names that they have in paths."""
    if isinstance(node, eqx.Module | Record):
        fields = [f for f in dataclasses.fields(node) if not f.metadata.get("static", False)]
        return [(f.name, getattr(node, f.name)) for f in fields]
    if isinstance(node, dict):
        return [(str(key), node[key]) for key in sorted(node)]
    if isinstance(node, tuple) and hasattr(node, "_fields"):
        return list(zip(node._fields, node, strict=True))
    if isinstance(node, list | tuple | Pile):
        items = node.items if isinstance(node, Pile) else node
        return [(str(index), child) for index, child in enumerate(items)]
    return []


def joined(path: str, name: str) -> str:
    return f"{path}/{name}" if path else name


def nodes_below(path: str, node: Any) -> Iterator[tuple[str, Any]]:
    """All nodes strictly inside, with their paths."""
    for name, child in children(node):
        yield joined(path, name), child
        yield from nodes_below(joined(path, name), child)


def leaves_of(path: str, node: Any) -> list[str]:
    """The paths of the leaves of `node`, as JAX counts them: `None` is not a leaf."""
    if node is None:
        return []
    if not is_container(node):
        return [path]
    return [p for name, child in children(node) for p in leaves_of(joined(path, name), child)]


def arrays_of(path: str, node: Any) -> dict[str, Any]:
    """The leaves of `node` by their paths."""
    everything = dict([(path, node), *nodes_below(path, node)])
    return {leaf: everything[leaf] for leaf in leaves_of(path, node)}


# Adapters in order of priority; those beside each other in a tuple are equal.
Tiers = tuple[tuple[type[LoRAWrapper], ...], ...]


@dataclasses.dataclass(frozen=True)
class Rule:
    """A spec, with what it lacks taken from the call."""

    target: str | None
    tiers: Tiers
    rank: int
    alpha: float
    options: Mapping[str, Any]


def tiers_of(wrapper: Any, installed: Mapping[str, type[LoRAWrapper]]) -> Tiers:
    """The adapters that `wrapper=` means.

    - `installed`: the registered adapters, each by its name with its distribution.
    """
    if wrapper is None:
        return tuple((cls,) for cls in DEFAULTS)
    if isinstance(wrapper, type):
        return ((wrapper,),)
    if isinstance(wrapper, list):
        return tuple(tier for item in wrapper for tier in tiers_of(item, installed))
    if wrapper == "auto":
        takes_part = [c for c in installed.values() if c.auto and c not in DEFAULTS]
        return (*tiers_of(None, installed), *_by_owner(takes_part, installed))
    if wrapper in installed:  # "distribution:Name"
        return ((installed[wrapper],),)
    word = _plain(wrapper)
    family = [c for c in installed.values() if c.variant and _plain(c.variant) == word]
    named = [c for c in installed.values() if _plain(c.__name__) == word]
    owners = _by_owner([*family, *named], installed)[0]
    return _by_owner(family, installed) if set(family) & set(owners) else (owners,)


def _by_owner(
    classes: list[type[LoRAWrapper]], installed: Mapping[str, type[LoRAWrapper]]
) -> Tiers:
    """The classes of the zoo, then of our other plugins, then of everybody else."""
    names = {cls: name.split(":")[0] for name, cls in installed.items()}
    of_zoo = tuple(cls for cls in classes if names[cls] == "jno-lora-zoo")
    foreign = tuple(cls for cls in classes if names[cls] == "(in-process)")
    ours = tuple(cls for cls in classes if cls not in (*of_zoo, *foreign))
    return tuple(tier for tier in (of_zoo, ours, foreign) if tier)


def _plain(variant: str) -> str:
    return variant.lower().replace("-", "").replace("_", "")


def rules_of(call: Mapping[str, Any], installed: Mapping[str, type[LoRAWrapper]]) -> list[Rule]:
    """The rules of a call with `rank`, `alpha`, perhaps `options`, `wrappers`, `target`, `specs`.

    Keys that a spec lacks come from the call. A call without specs is a rule by itself.
    """
    specs: Iterable[Any] = call.get("specs", [{"target": call.get("target")}])
    rules = []
    for spec in specs:
        wrapper = call.get("wrappers") if spec.get("wrapper") is None else spec["wrapper"]
        rules.append(
            Rule(
                spec.get("target"),
                tiers_of(wrapper, installed),
                spec.get("rank", call["rank"]),
                spec.get("alpha", call["alpha"]),
                spec.get("options", call.get("options", {})),
            )
        )
    return rules


@dataclasses.dataclass(frozen=True)
class Selection:
    """The layers that a call selects.

    - `wrapped`: those that it wraps, `path -> (adapter, rank, alpha, options)`.
    - `matching`: the rules that found a layer at all, whatever the mask says.
    - `carrying`: those that it does not wrap, since they carry an adapter or hold one.
    """

    wrapped: dict[str, tuple[type[LoRAWrapper], int, float, Mapping[str, Any]]]
    matching: set[int]
    carrying: set[str]


def selection(
    model: Any,
    rules: list[Rule],
    chosen: set[str] | None,
) -> Selection:
    """The layers that rules and a mask select.

    The first rule wins whose target is found in the path and of whose adapters one applies. An
    adapter for a container yields to a stronger claim on a layer inside it. Nothing inside an
    adapter is looked at, and nothing inside a norm that owns its layer's weight is wrapped.

    - `chosen`: the paths of the leaves that the mask selects; `None` without a mask.
    """
    found = Selection({}, set(), set())

    def claim(path: str, node: Any) -> tuple[tuple[int, int], type[LoRAWrapper]] | None:
        """The rule and the place in its list by which a node is claimed, and the adapter."""
        for number, rule in enumerate(rules):
            if rule.target is None or re.search(rule.target, path):
                for place, tier in enumerate(rule.tiers):
                    claims = [cls for cls in tier if cls.applies_to(node)]
                    if claims:
                        (cls,) = claims  # no two of equal priority adapt one layer
                        return (number, place), cls
        return None

    def is_chosen(path: str, node: Any) -> bool:
        return chosen is None or any(leaf in chosen for leaf in leaves_of(path, node))

    def inside(path: str, node: Any) -> Iterator[tuple[str, Any]]:
        """The nodes that an adapter could wrap in place of `node`."""
        for name, child in children(node):
            yield joined(path, name), child
            if not isinstance(child, (LoRAWrapper, *NORMS)):
                yield from inside(joined(path, name), child)

    def rivals(path: str, node: Any) -> Iterator[tuple[int, int]]:
        for p, n in inside(path, node):
            claimed = claim(p, n)
            if claimed is not None and is_chosen(p, n):
                yield claimed[0]

    def visit(path: str, node: Any) -> None:
        carries = isinstance(node, LoRAWrapper)
        claimed = claim(path, node.base if carries else node)
        if claimed is not None:
            (number, _), cls = claimed
            # Nothing inside an adapter or a norm can be wrapped in its place.
            yields = not isinstance(node, (LoRAWrapper, *NORMS))
            if not (yields and any(priority < claimed[0] for priority in rivals(path, node))):
                # A node that carries an adapter already counts as found by the rule.
                found.matching.add(number)
                if carries or any(isinstance(n, LoRAWrapper) for _, n in nodes_below(path, node)):
                    if is_chosen(path, node):
                        found.carrying.add(path)
                    return
                if is_chosen(path, node):
                    rule = rules[number]
                    found.wrapped[path] = cls, rule.rank, rule.alpha, rule.options
                    return
        if carries:
            return
        if isinstance(node, NORMS):
            for p, n in inside(path, node):
                claimed = claim(p, n)
                if claimed is not None and not is_chosen(p, n):
                    # A layer that the mask leaves out counts as found by the rule.
                    found.matching.add(claimed[0][0])
            return
        for name, child in children(node):
            visit(joined(path, name), child)

    visit("", model)
    return found
