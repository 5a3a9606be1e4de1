"""The layers of a model by their paths: found, adapted or not, and replaced."""

from collections.abc import Collection, Container, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.tree_util as jtu
from jaxtyping import PyTree

from ._contract import LoRAWrapper, is_wrapper, unwrapped_layer
from ._errors import SelectionError
from ._paths import KeyPath, path_str, show_path
from ._sharding import on_the_mesh

M = TypeVar("M")

# Containers that read and rewrite the weight of the layer inside, so that an adapter in there
# would be normalised away or bypassed; and what a plan says of such a layer.
NORMALISED: dict[type, Any] = {
    eqx.nn.WeightNorm: "inside WeightNorm",
    eqx.nn.SpectralNorm: "inside SpectralNorm",
}


def claims(cls: type[LoRAWrapper], layer: Any) -> bool:
    """Whether `cls` says that it is for `layer`. One that cannot answer has not said yes."""
    try:
        return bool(cls.applies_to(layer))
    except Exception:
        return False


def holds_adapters(tree: Any) -> bool:
    """Whether any layer of `tree` is adapted."""
    return any(is_wrapper(leaf) for leaf in jax.tree.leaves(tree, is_leaf=is_wrapper))


def adapted_layers(model: Any) -> Iterator[tuple[str, LoRAWrapper]]:
    """Every adapted layer of `model` that is in no other, with its path."""
    for keys, node in jtu.tree_leaves_with_path(model, is_leaf=is_wrapper):
        if is_wrapper(node):
            yield path_str(keys), node


def put_in(model: M, built: Mapping[str, LoRAWrapper], *, drop_others: bool) -> M:
    """`model` with these adapted layers in the places of its layers, by path."""

    def replace(keys: KeyPath, node: Any) -> Any:
        path = path_str(keys)
        if path in built and isinstance(node, eqx.Module):
            return built[path]
        return plain_layer(node) if drop_others else node

    return jtu.tree_map_with_path(replace, model, is_leaf=_is_place(built), is_leaf_takes_path=True)


def nested_with(model: PyTree, paths: Iterable[str]) -> dict[str, list[str]]:
    """By path, a line for each adapter of `model` around the layer there, or inside of it."""
    carried = {path: type(wrapper).__name__ for path, wrapper in adapted_layers(model)}
    if not carried:
        return {}
    wanted = dict.fromkeys(paths)
    around = [(path, "inside", above) for path, above in _held(wanted, carried)]
    within = [(above, "around", path) for path, above in _held(carried, wanted)]
    found: dict[str, list[str]] = {}
    for path, where, other in (*around, *within):
        line = f"{show_path(path)}: {where} the {carried[other]} at {show_path(other)!r}"
        found.setdefault(path, []).append(f"{line}: merge or unwrap that first")
    return found


def norms_around(model: PyTree, paths: Iterable[str]) -> dict[str, str]:
    """By path, that of the norm (one of `NORMALISED`) which holds the layer there."""
    norms: set[str] = set()
    kinds = tuple(NORMALISED)

    def look(keys: KeyPath, node: Any) -> bool:
        is_norm = issubclass(type(node), kinds)
        if is_norm:
            norms.add(path_str(keys))
        return is_norm or is_wrapper(node)

    jtu.tree_flatten_with_path(model, is_leaf=look, is_leaf_takes_path=True)
    return dict(_held(paths, norms))


def layers_at(model: PyTree, paths: Iterable[str]) -> dict[str, Any]:
    """The modules of `model` at these paths, plain or adapted. Those it lacks are left out.

    **Raises:** `SelectionError` if two modules have one of the paths.
    """
    wanted = frozenset(paths)
    is_place = _is_place(wanted)
    found: dict[str, Any] = {}
    for keys, node in jtu.tree_leaves_with_path(model, is_leaf=is_place, is_leaf_takes_path=True):
        path = path_str(keys)
        if isinstance(node, eqx.Module) and path in wanted:
            refuse_second(path, found, "layers")
            found[path] = node
    return found


def module_paths(model: PyTree) -> list[str]:
    """The paths of all modules, plain or adapted, that are not in an adapted one."""
    paths: list[str] = []

    def look(keys: KeyPath, node: Any) -> bool:
        if isinstance(node, eqx.Module):
            paths.append(path_str(keys))
        return is_wrapper(node)

    jtu.tree_flatten_with_path(model, is_leaf=look, is_leaf_takes_path=True)
    return paths


def plain_layer(node: Any) -> Any:
    """The layer in an adapter; anything else as it is."""
    return on_the_mesh(node, unwrapped_layer, node) if is_wrapper(node) else node


def refuse_second(path: str, found: Container[str], what: str) -> None:
    """**Raises:** `SelectionError` if the path is among those found before."""
    if path in found:
        raise SelectionError(
            f"Two {what} have the path {show_path(path)!r}: a dict key in it holds a slash. "
            "Rename the key."
        )


def _held(paths: Iterable[str], holders: Collection[str]) -> Iterator[tuple[str, str]]:
    """Each of `paths` with each of `holders` that is the path of something around it.

    A deep path is not taken apart: only its beginnings of the holders' lengths are looked at.
    """
    lengths = sorted({len(holder) for holder in holders})
    for path in paths:
        for length in lengths:
            is_above = path[length : length + 1] == "/" if length else path != ""
            if is_above and path[:length] in holders:
                yield path, path[:length]


def _is_place(paths: Container[str]) -> Any:
    def is_place(keys: KeyPath, node: Any) -> bool:
        return isinstance(node, eqx.Module) and (is_wrapper(node) or path_str(keys) in paths)

    return is_place
