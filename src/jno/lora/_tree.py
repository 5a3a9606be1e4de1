"""The layers of a model by their paths: find layers, detect adapters, replace layers."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping
from typing import Any, Literal, TypeAlias, TypeVar

import equinox as eqx
import jax
import jax.tree_util as jtu
from jaxtyping import PyTree

from ._contract.coded import is_coded
from ._contract.wrapper import is_adapter
from ._errors import SelectionError
from ._paths import KeyPath, path_str, show_path

M = TypeVar("M")

# Norms read and rewrite the weight of the layer inside. They would bypass an adapter there, or
# normalise it away. The texts are the status of such a layer in a plan.
NormStatus: TypeAlias = Literal["inside WeightNorm", "inside SpectralNorm"]
NORMALISED: dict[type, NormStatus] = {
    eqx.nn.WeightNorm: "inside WeightNorm",
    eqx.nn.SpectralNorm: "inside SpectralNorm",
}


@functools.cache
def norm_status(cls: type) -> NormStatus | None:
    """The status of a layer inside of a `cls`, if that is a norm."""
    return next((status for norm, status in NORMALISED.items() if issubclass(cls, norm)), None)


def modules_in(tree: PyTree) -> list[tuple[KeyPath, eqx.Module]]:
    """The modules of `tree` by their key paths, outer modules first. Adapters are not entered."""
    modules: list[tuple[KeyPath, eqx.Module]] = []

    def visit(keys: KeyPath, node: PyTree) -> bool:
        # By its type: `isinstance` of a module is slow, and most nodes are arrays.
        if not issubclass(type(node), eqx.Module):
            return False
        if is_coded(node):  # an array of its layer
            return True
        modules.append((keys, node))
        return is_adapter(node)

    # JAX walks, and `visit` collects.
    jtu.tree_flatten_with_path(tree, is_leaf=visit, is_leaf_takes_path=True)
    return modules


def modules_by_path(model: PyTree) -> dict[str, eqx.Module]:
    """All modules outside of adapters, and the adapters; the first module at each path."""
    modules: dict[str, eqx.Module] = {}
    for keys, module in modules_in(model):
        modules.setdefault(path_str(keys), module)
    return modules


def fields_of(module: eqx.Module) -> dict[str, Any]:
    """The values of the fields of a module, by name; `None` for a field that was never set."""
    return {field.name: getattr(module, field.name, None) for field in dataclasses.fields(module)}


def holds_adapters(tree: PyTree) -> bool:
    """Whether any layer of `tree` is adapted."""
    return any(is_adapter(leaf) for leaf in jax.tree.leaves(tree, is_leaf=is_adapter))


def adapted_layers(model: PyTree, *trees: PyTree) -> Iterator[tuple[Any, ...]]:
    """The path of each adapted layer, its adapter, and the nodes of `trees` at this place.

    An adapter inside of another adapter belongs to the outer adapter, and is not listed.

    - `trees`: have the structure of `model` around its adapted layers, as masks do.
    """
    nodes, treedef = jtu.tree_flatten_with_path(model, is_leaf=is_adapter)
    columns = map(treedef.flatten_up_to, trees)
    for (keys, node), *nodes_of_trees in zip(nodes, *columns, strict=True):
        if is_adapter(node):
            yield path_str(keys), node, *nodes_of_trees


def map_adapters(function: Callable[..., Any], model: PyTree, *trees: PyTree) -> PyTree:
    """Replace each adapted layer by `function(path, adapter, *nodes)`.

    An adapter inside of another adapter belongs to the outer adapter. A tree that `eqx.partition`
    returns has the adapters of the model, with `None` for the arrays in the other tree.

    - `trees`: as for `adapted_layers`. Everywhere else, the result is the last tree.
    """

    def replace(keys: KeyPath, *nodes: PyTree) -> PyTree:
        return function(path_str(keys), *nodes) if is_adapter(nodes[0]) else nodes[-1]

    return jtu.tree_map_with_path(replace, model, *trees, is_leaf=is_adapter)


def layers_at(model: PyTree, paths: Iterable[str]) -> dict[str, eqx.Module]:
    """The modules of `model` at these paths, plain or adapted. Missing paths are left out.

    **Raises:** `SelectionError` if two modules share one of the paths.
    """
    wanted = frozenset(paths)
    layers: dict[str, eqx.Module] = {}
    is_place = functools.partial(_is_place, wanted)
    for keys, node in jtu.tree_leaves_with_path(model, is_leaf=is_place, is_leaf_takes_path=True):
        path = path_str(keys)
        if isinstance(node, eqx.Module) and path in wanted:
            refuse_second(path, layers, "layers")
            layers[path] = node
    return layers


def replace_layers(model: M, nodes: Mapping[str, PyTree]) -> M:
    """`model` with the layers at these paths replaced by `nodes`."""

    def replace(keys: KeyPath, node: object) -> PyTree:
        return nodes.get(path_str(keys), node) if isinstance(node, eqx.Module) else node

    is_place = functools.partial(_is_place, nodes)
    return jtu.tree_map_with_path(replace, model, is_leaf=is_place, is_leaf_takes_path=True)


def nested_with(model: PyTree, paths: Iterable[str]) -> dict[str, list[str]]:
    """By path, a line for each adapter of `model` around the layer there, or inside of it."""
    adapters = {path: type(adapter).__name__ for path, adapter in adapted_layers(model)}
    wanted = dict.fromkeys(paths)
    outer = [(path, "inside", adapted) for path, adapted in enclosing(wanted, adapters)]
    inner = [(path, "around", adapted) for adapted, path in enclosing(adapters, wanted)]
    lines: dict[str, list[str]] = {}
    for path, where, adapted in (*outer, *inner):
        place = f"{show_path(path)}: {where} the {adapters[adapted]} at {show_path(adapted)!r}"
        lines.setdefault(path, []).append(f"{place}: merge or unwrap that first")
    return lines


def norms_around(model: PyTree, paths: Iterable[str]) -> dict[str, str]:
    """By path, the path of the outermost norm (`NORMALISED`) around the layer there."""
    norms = {path_str(keys) for keys, node in modules_in(model) if norm_status(type(node))}
    # The outermost norm of a path comes first, so that it is the last in reverse.
    return dict(reversed([*enclosing(paths, norms)]))


def refuse_second(path: str, seen: Container[str], nouns: str) -> None:
    """**Raises:** `SelectionError` if `path` was `seen` before."""
    if path in seen:
        raise SelectionError(
            f"Two {nouns} have the path {show_path(path)!r}: a dict key in it holds a slash. "
            "Rename the key."
        )


def enclosing(paths: Iterable[str], outer_paths: Collection[str]) -> Iterator[tuple[str, str]]:
    """Pairs of a path and an outer path that encloses it, the outermost first."""
    for path in filter(None, paths):
        lengths = [0, *(k for k, letter in enumerate(path) if letter == "/")]
        yield from ((path, path[:k]) for k in lengths if path[:k] in outer_paths)


def _is_place(paths: Container[str], keys: KeyPath, node: object) -> bool:
    return isinstance(node, eqx.Module) and (is_adapter(node) or path_str(keys) in paths)
