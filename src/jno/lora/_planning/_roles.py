"""Linear layers by their role in a model: in repeated blocks, output heads, routers of experts."""

import collections
import dataclasses
import functools
import re
from collections.abc import Iterator
from typing import Any, ClassVar

import equinox as eqx
import jax.tree_util as jtu

from .._contract import LinearLike, is_adapter
from .._paths import KeyPath, path_str
from .._tree import modules_in

ALL_LINEAR = "all-linear"
_HEAD = re.compile(
    r"(^|_)head$|logits|unembed|classifier|(^|_)lm_out|vocab|output_(layer|proj|projection)$"
)


@dataclasses.dataclass(frozen=True)
class LinearInBlocks:
    """The target `"all-linear"`: it is found in the paths of all linear layers in repeated blocks.

    Repeated blocks are modules of one class in one list or tuple, at least two, that hold layers
    themselves; or one stacked module, whose weights have an axis more. Routers of experts are left
    out, and so is everything outside of the blocks, such as an output head.
    """

    paths: frozenset[str] = frozenset()
    pattern: ClassVar[str] = ALL_LINEAR
    # The reason if there are no such layers.
    missing: ClassVar[str] = (
        "It means the linear layers in repeated blocks (modules of one class in a list, or a "
        "stack), and this model has none. Leave `target` out to adapt every layer, or give a regex "
        "on paths, or a list of names."
    )

    @classmethod
    def of(cls, model: Any) -> "LinearInBlocks":
        """The target for this model."""
        modules = modules_in(model)
        blocks = set(_blocks(modules))
        mixtures = {keys for keys, node in modules if has_experts(type(node))}
        return cls(
            frozenset(
                path_str(keys)
                for keys, node in modules
                if _is_linear(node)
                and (_is_stacked(node) or any(keys[:n] in blocks for n in range(len(keys))))
                and role_of(path_str(keys), keys[:-1] in mixtures) != "router"
            )
        )

    def search(self, path: str) -> bool:
        """Whether the target is found in `path`."""
        return path in self.paths


@dataclasses.dataclass(frozen=True)
class NamedLayers:
    """A target of names: it is found in the paths that end in one of them."""

    names: tuple[str, ...]

    @property
    def pattern(self) -> str:
        """The names, for messages."""
        return ", ".join(self.names)

    def search(self, path: str) -> bool:
        """Whether the target is found in `path`."""
        return any(path == name or path.endswith(f"/{name}") for name in self.names)

    def missing_from(self, paths: list[str]) -> list[str]:
        """The names that no path ends in."""
        return [n for n in self.names if not any(NamedLayers((n,)).search(p) for p in paths)]


def role_of(path: str, beside_experts: bool) -> str | None:
    """The role that the path of a layer tells: `"output head"`, `"router"` or neither.

    - `beside_experts`: whether the module that holds the layer has a field for experts.
    """
    name = path.rpartition("/")[2]
    if "router" in path or (name == "gate" and beside_experts):
        return "router"
    return "output head" if _HEAD.search(name) else None


@functools.cache
def has_experts(cls: type) -> bool:
    """Whether a class of modules has a field for experts."""
    return any("expert" in field.name for field in dataclasses.fields(cls))


def _blocks(modules: list[tuple[KeyPath, eqx.Module]]) -> Iterator[KeyPath]:
    """The key paths of modules that repeat in a list or tuple, and that hold layers."""
    outer = {keys[:n] for keys, _ in modules for n in range(len(keys))}
    repeated: dict[Any, list[KeyPath]] = collections.defaultdict(list)
    for keys, node in modules:
        if keys and isinstance(keys[-1], jtu.SequenceKey) and keys in outer:
            repeated[keys[:-1], type(node)].append(keys)
    for places in repeated.values():
        if len(places) > 1:
            yield from places


def _is_linear(node: Any) -> bool:
    return isinstance(node.base if is_adapter(node) else node, LinearLike)


def _is_stacked(node: Any) -> bool:
    return getattr((node.base if is_adapter(node) else node).weight, "ndim", 0) > 2
