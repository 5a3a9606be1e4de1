"""The modules of a model, and what selects them by their paths: targets and masks."""

import collections
import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeAlias

import equinox as eqx
import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree

from .._contract.protocols import LinearLike
from .._contract.wrapper import is_adapter
from .._errors import SelectionError
from .._paths import KeyPath, path_str, show_path
from .._tree import NormStatus, modules_in, norm_status

TargetLike: TypeAlias = str | re.Pattern[str] | Sequence[str] | None
MaskLike: TypeAlias = PyTree | str | re.Pattern[str]
Selector: TypeAlias = Callable[[KeyPath], bool]  # whether a mask selects the node at a key path

ALL_LINEAR = "all-linear"
_HEAD = re.compile(
    r"(^|_)head$|logits|unembed|classifier|(^|_)lm_out|vocab|output_(layer|proj|projection)$"
)


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A module of a model, outside of adapters: a layer, a container, or an adapter.

    - `parent`: the candidate around it.
    - `inside_norm`: for a module inside a norm that rewrites its weight, the status of its row.
    """

    keys: KeyPath
    path: str
    module: eqx.Module
    parent: "Candidate | None"
    inside_norm: NormStatus | None

    @property
    def layer(self) -> PyTree:
        """The module without its adapter."""
        return self.module.base if is_adapter(self.module) else self.module

    @property
    def role(self) -> str | None:
        """The role in the model that the path suggests: `"output head"`, `"router"` or `None`."""
        name = self.path.rpartition("/")[2]
        if "router" in self.path or (name == "gate" and self._is_beside_experts):
            return "router"
        return "output head" if _HEAD.search(name) else None

    @property
    def _is_beside_experts(self) -> bool:
        if self.parent is None or self.parent.keys != self.keys[:-1]:
            return False
        return any("expert" in field.name for field in dataclasses.fields(self.parent.module))


def candidates_of(model: PyTree) -> list[Candidate]:
    """The modules of `model` outside of adapters, outer modules first."""
    candidates: list[Candidate] = []
    parent: Candidate | None = None
    for keys, module in modules_in(model):
        while parent is not None and keys[: len(parent.keys)] != parent.keys:
            parent = parent.parent
        # The outermost norm counts.
        inside_norm = parent and (parent.inside_norm or norm_status(type(parent.module)))
        parent = Candidate(keys, path_str(keys), module, parent, inside_norm)
        candidates.append(parent)
    return candidates


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
    def of(cls, model: PyTree) -> "LinearInBlocks":
        candidates = candidates_of(model)
        blocks = _blocks(candidates)
        paths: set[str] = set()
        for candidate in candidates:
            layer, keys = candidate.layer, candidate.keys
            if not isinstance(layer, LinearLike) or candidate.role == "router":
                continue
            is_stacked = getattr(layer.weight, "ndim", 0) > 2
            if is_stacked or any(keys[:n] in blocks for n in range(len(keys))):
                paths.add(candidate.path)
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


Target: TypeAlias = re.Pattern[str] | NamedLayers | LinearInBlocks


def parse_target(model: PyTree, target: TargetLike, argument: str) -> Target | None:
    """The target of a call or spec. **Raises:** `SelectionError` that names the argument."""
    if target is None:
        return None
    if target == ALL_LINEAR:
        return LinearInBlocks.of(model)
    if isinstance(target, list | tuple) and target and all(isinstance(x, str) for x in target):
        return NamedLayers(tuple(target))
    return compiled(target, argument)


def compiled(pattern: object, argument: str) -> re.Pattern[str]:
    """`pattern` compiled. **Raises:** `SelectionError` that names the argument."""
    if not isinstance(pattern, str | re.Pattern):
        raise SelectionError(
            f"`{argument}` must be a regex (a string), a list of names that paths end in, or "
            f'"all-linear", but is {pattern!r}.'
        )
    try:
        return re.compile(pattern)
    except re.error as err:
        raise SelectionError(
            f"`{argument}` is not a valid regex: {pattern!r}: {err}. It is searched in paths such "
            "as 'encoder/layers/0'. Escape special characters with a backslash."
        ) from err


def selector(model: PyTree, mask: MaskLike | None) -> Selector:
    """Returns whether the mask selects a leaf of the node at a key path of `model`."""
    if mask is None:
        return lambda keys: True
    leaves = jtu.tree_leaves_with_path(parse_mask(model, mask))
    selected = [keys for keys, is_selected in leaves if is_selected]
    nodes_around = {keys[:n] for keys in selected for n in range(len(keys) + 1)}
    return lambda keys: keys in nodes_around


def parse_mask(model: PyTree, mask: MaskLike) -> PyTree[bool]:
    """A mask as Python bools in the exact structure of `model`.

    - `mask`: bools in the structure of `model` or of a prefix of it (one bool for a whole
        subtree), or a regex that is searched in the path of every leaf.

    **Raises:** `SelectionError` that names the path at which the structures differ, or the leaf
    that is not a bool.
    """
    if isinstance(mask, str | re.Pattern):
        pattern = compiled(mask, "mask")
        return jtu.tree_map_with_path(lambda keys, _: bool(pattern.search(path_str(keys))), model)
    # `None` selects nothing. `eqx.filter` puts it in the place of leaves that are not arrays.
    leaves, treedef = jtu.tree_flatten_with_path(mask, is_leaf=lambda node: node is None)
    for keys, leaf in leaves:
        is_bool = getattr(leaf, "shape", None) == () and getattr(leaf, "dtype", None) == np.bool_
        if not (leaf is None or isinstance(leaf, bool) or is_bool):
            value = repr(leaf) if len(repr(leaf)) < 60 else f"a {type(leaf).__name__}"
            raise SelectionError(
                f"A mask has one bool per leaf (or subtree), but has {value} at "
                f"{show_path(path_str(keys))!r}. To select whole layers by name, give a regex: "
                '.mask("encoder")'
            )
    try:
        subtrees = treedef.flatten_up_to(model)
    except ValueError as err:
        raise SelectionError(_mismatch(model, mask)) from err
    bools: list[bool] = []
    for (_, value), subtree in zip(leaves, subtrees, strict=True):
        subtree_leaves = jtu.tree_leaves(subtree)
        if value is None and any(map(eqx.is_array, subtree_leaves)):
            raise SelectionError(_mismatch(model, mask))
        bools += [bool(value)] * len(subtree_leaves)
    return jtu.tree_unflatten(jtu.tree_structure(model), bools)


def _mismatch(model: PyTree, mask: PyTree) -> str:
    model_paths, mask_paths = (
        [f"{path_str(keys)}/" for keys, _ in jtu.tree_leaves_with_path(tree)]
        for tree in (model, mask)
    )
    # A leaf of the mask may stand for a whole subtree of the model.
    odd = [path for path in mask_paths if not any(p.startswith(path) for p in model_paths)]
    odd += [path for path in model_paths if not path.startswith(tuple(mask_paths))]
    where = f", at {show_path(odd[0][:-1])!r}" if odd else " (a class or a static field differs)"
    return (
        f"The mask has another structure than the model{where}. Build it from the model as it "
        "is now:\n"
        "    mask = jax.tree.map(lambda _: False, net.module)\n"
        "    mask = eqx.tree_at(lambda m: m.encoder, mask, True)\n"
        'or give a regex on paths: .mask("encoder")'
    )


def _blocks(candidates: list[Candidate]) -> set[KeyPath]:
    """The key paths of modules that repeat in a list or tuple, and contain layers."""
    holders = {x.keys[:n] for x in candidates for n in range(len(x.keys))}
    siblings: dict[Any, list[KeyPath]] = collections.defaultdict(list)  # of one class
    for candidate in candidates:
        keys = candidate.keys
        if keys and isinstance(keys[-1], jtu.SequenceKey) and keys in holders:
            siblings[keys[:-1], type(candidate.module)].append(keys)
    return {keys for group in siblings.values() if len(group) > 1 for keys in group}
