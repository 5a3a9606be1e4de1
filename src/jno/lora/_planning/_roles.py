"""Linear layers by their role in a model: in repeated blocks, output heads, routers of experts."""

import collections
import dataclasses
import functools
import re
from typing import Any, ClassVar

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
    """The target `"all-linear"`, which matches all linear layers in repeated blocks.

    Repeated blocks are two or more modules of one class in a list or tuple that contain layers, or
    one stacked module, whose weights have one more axis. The target leaves out routers of experts,
    and everything outside of the blocks, such as an output head.
    """

    paths: frozenset[str]
    pattern: ClassVar[str] = ALL_LINEAR

    @classmethod
    def of(cls, model: Any) -> "LinearInBlocks":
        modules = modules_in(model)
        blocks = _blocks(modules)
        mixtures = {keys for keys, node in modules if has_experts(type(node))}
        paths: set[str] = set()
        for keys, node in modules:
            layer = node.base if is_adapter(node) else node
            if not isinstance(layer, LinearLike):
                continue
            is_stacked = getattr(layer.weight, "ndim", 0) > 2
            is_in_block = any(keys[:n] in blocks for n in range(len(keys)))
            is_router = role_of(path_str(keys), keys[:-1] in mixtures) == "router"
            if (is_stacked or is_in_block) and not is_router:
                paths.add(path_str(keys))
        return cls(frozenset(paths))

    def search(self, path: str) -> bool:
        return path in self.paths


@dataclasses.dataclass(frozen=True)
class NamedLayers:
    """A target of names, which matches the paths that end in one of the names.

    A dot counts as a slash, as in PEFT's names of modules.
    """

    names: tuple[str, ...]

    @property
    def pattern(self) -> str:
        return ", ".join(self.names)

    def search(self, path: str) -> bool:
        ends = tuple(f"/{name}".replace(".", "/") for name in self.names)
        return f"/{path}".replace(".", "/").endswith(ends)

    def missing_from(self, paths: list[str]) -> list[str]:
        """The names that none of the paths ends in."""
        return [name for name in self.names if not any(map(NamedLayers((name,)).search, paths))]


def role_of(path: str, beside_experts: bool) -> str | None:
    """The role of a layer by its path: `"output head"`, `"router"` or `None`.

    - `beside_experts`: whether the module around the layer has a field for experts.
    """
    name = path.rpartition("/")[2]
    if "router" in path or (name == "gate" and beside_experts):
        return "router"
    return "output head" if _HEAD.search(name) else None


@functools.cache
def has_experts(cls: type) -> bool:
    return any("expert" in field.name for field in dataclasses.fields(cls))


def _blocks(modules: list[tuple[KeyPath, Any]]) -> set[KeyPath]:
    """The key paths of modules that repeat in a list or tuple, and contain layers."""
    holders = {keys[:n] for keys, _ in modules for n in range(len(keys))}
    siblings: dict[Any, list[KeyPath]] = collections.defaultdict(list)  # of one class
    for keys, node in modules:
        if keys and isinstance(keys[-1], jtu.SequenceKey) and keys in holders:
            siblings[keys[:-1], type(node)].append(keys)
    return {keys for group in siblings.values() if len(group) > 1 for keys in group}
