"""What a call selects, written from the documentation and without regard to cost."""

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax.numpy as jnp

from jno.lora import LoRAWrapper

NORMS = (eqx.nn.WeightNorm, eqx.nn.SpectralNorm)


def children(node: Any) -> list[tuple[str, Any]]:
    """The nodes directly in `node`, by the names that they have in paths."""
    if isinstance(node, eqx.Module):
        fields = [f for f in dataclasses.fields(node) if not f.metadata.get("static", False)]
        return [(f.name, getattr(node, f.name)) for f in fields]
    if isinstance(node, dict):
        return [(str(key), node[key]) for key in sorted(node)]
    if isinstance(node, list | tuple):
        return [(str(index), child) for index, child in enumerate(node)]
    return []


def joined(path: str, name: str) -> str:
    return f"{path}/{name}" if path else name


def nodes_below(path: str, node: Any) -> Iterator[tuple[str, Any]]:
    """All nodes strictly inside, with their paths."""
    for name, child in children(node):
        yield joined(path, name), child
        yield from nodes_below(joined(path, name), child)


def leaves_of(path: str, node: Any) -> list[str]:
    """The paths of the leaves of `node`, as JAX counts them: `None` is none."""
    if node is None:
        return []
    if not isinstance(node, eqx.Module | dict | list | tuple):
        return [path]
    return [p for name, child in children(node) for p in leaves_of(joined(path, name), child)]


def arrays_of(path: str, node: Any) -> dict[str, Any]:
    """The leaves of `node` by their paths."""
    everything = dict([(path, node), *nodes_below(path, node)])
    return {leaf: everything[leaf] for leaf in leaves_of(path, node)}


@dataclasses.dataclass(frozen=True)
class Selection:
    """What a call wraps: `path -> (adapter, rank)`, and the specs that found a layer at all."""

    wrapped: dict[str, tuple[type[LoRAWrapper], int]]
    matching: set[int]


def selection(model: Any, specs: list[dict[str, Any]], chosen: set[str] | None) -> Selection:
    """What specs (of `target`, `wrapper`, `rank`) and a mask select.

    The first spec wins whose target is found in the path and of whose adapters one applies. An
    adapter for a container yields to a stronger claim on a layer inside it. Nothing inside an
    adapter is looked at, nor anything inside a norm that owns its layer's weight.

    - `chosen`: the paths of the leaves that the mask selects; `None` without a mask.
    """
    wrapped: dict[str, tuple[type[LoRAWrapper], int]] = {}
    matching: set[int] = set()

    def claim(path: str, node: Any) -> tuple[int, int] | None:
        """The spec that claims a node, and the place of the adapter in its list."""
        for number, spec in enumerate(specs):
            if re.search(spec["target"], path):
                for place, cls in enumerate(spec["wrapper"]):
                    if cls.applies_to(node):
                        return number, place
        return None

    def is_chosen(path: str, node: Any) -> bool:
        return chosen is None or any(leaf in chosen for leaf in leaves_of(path, node))

    def inside(path: str, node: Any) -> Iterator[tuple[str, Any]]:
        """What an adapter could wrap in place of `node`."""
        for name, child in children(node):
            yield joined(path, name), child
            if not isinstance(child, (LoRAWrapper, *NORMS)):
                yield from inside(joined(path, name), child)

    def visit(path: str, node: Any) -> None:
        if isinstance(node, LoRAWrapper):
            found = claim(path, node.base)
            if found is not None:  # adapted already, which is no reason to complain of the spec
                matching.add(found[0])
            return
        found = claim(path, node)
        if found is not None:
            rivals = (claim(p, n) for p, n in inside(path, node) if is_chosen(p, n))
            if not any(rival is not None and rival < found for rival in rivals):
                matching.add(found[0])
                carries = any(isinstance(n, LoRAWrapper) for _, n in nodes_below(path, node))
                if carries:
                    return
                if is_chosen(path, node):
                    number, place = found
                    wrapped[path] = specs[number]["wrapper"][place], specs[number]["rank"]
                    return
        if isinstance(node, NORMS):
            # What the mask leaves out is no fault of the spec that would find it.
            for p, n in inside(path, node):
                found = claim(p, n)
                if found is not None and not is_chosen(p, n):
                    matching.add(found[0])
            return
        for name, child in children(node):
            visit(joined(path, name), child)

    visit("", model)
    return Selection(wrapped, matching)


def trainable(model: Any) -> dict[str, str]:
    """By path, what each inexact array is: "adapter", "frozen" in an adapter, or "outside"."""
    roles: dict[str, str] = {}

    def visit(path: str, node: Any, role: str) -> None:
        if isinstance(node, LoRAWrapper):
            for name, child in children(node):
                own = name in type(node).adapter_fields and role != "frozen"
                visit(joined(path, name), child, "adapter" if own else "frozen")
            return
        if eqx.is_array(node) and jnp.issubdtype(node.dtype, jnp.inexact):
            roles[path] = role
        for name, child in children(node):
            visit(joined(path, name), child, role)

    visit("", model, "outside")
    return roles
