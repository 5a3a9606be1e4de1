"""The layers of a model by their paths: find them, tell which are adapted, replace them."""

import functools
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.tree_util as jtu
from jaxtyping import PyTree

from ._contract import LoRAWrapper, is_adapter, is_coded
from ._errors import SelectionError
from ._paths import KeyPath, path_str, show_path

M = TypeVar("M")

# Containers that read and rewrite the weight of the layer inside, so that an adapter in there
# would be normalised away or bypassed; and the status of such a layer in a plan.
NORMALISED: dict[type, Any] = {
    eqx.nn.WeightNorm: "inside WeightNorm",
    eqx.nn.SpectralNorm: "inside SpectralNorm",
}


def claims(cls: type[LoRAWrapper], layer: Any) -> bool:
    """Whether `cls` applies to `layer`. A class that raises does not."""
    try:
        return bool(cls.applies_to(layer))
    except Exception:
        return False


@functools.singledispatch
def default_adapters(layer: Any) -> tuple[type[LoRAWrapper], ...]:
    """The adapters that calls with `wrapper=None` try on `layer`, after the defaults.

    An open function, without adapters for layers whose class nobody registered:

    ```python
    @default_adapters.register(MyLayer)
    def _(layer): return (MyAdapter,)
    ```
    """
    return ()


@functools.singledispatch
def callable_for(layer: Any, model: Any) -> Callable[..., Any] | None:
    """The function that a `Net` calls in the place of `model`, which holds `layer`.

    An open function, registered as `default_adapters` is. `None` calls the model.
    """
    return None


def callable_model(model: Any) -> Callable[..., Any]:
    """The function that a `Net` calls: `model`, or the function that one of its layers asks for.

    **Raises:** `SelectionError` if the model cannot be called.
    """
    default = callable_for.dispatch(object)

    def is_registered(node: Any) -> bool:
        return callable_for.dispatch(type(node)) is not default

    for layer in filter(is_registered, jax.tree.leaves(model, is_leaf=is_registered)):
        function = callable_for(layer, model)
        if function is not None:
            return function
    if not callable(model):
        raise SelectionError(
            f"The model of this net is a {type(model).__name__}, which cannot be called. Call the "
            "function that takes it: apply(net.module, x)"
        )
    return model


def modules_in(
    tree: PyTree, keys: KeyPath = (), *, enter_norms: bool = True
) -> list[tuple[KeyPath, eqx.Module]]:
    """All modules of `tree`, outer ones first, with their key paths. Adapters are not entered.

    - `keys`: the key path of `tree` itself.
    - `enter_norms`: whether to look into norms (`NORMALISED`) other than `tree` itself.
    """
    found: list[tuple[KeyPath, eqx.Module]] = []
    norms = () if enter_norms else tuple(NORMALISED)

    def look(inner: KeyPath, node: Any) -> bool:
        # By its type: `isinstance` of a module is slow, and most nodes are arrays.
        if not issubclass(type(node), eqx.Module):
            return False
        if is_coded(node):  # an array of its layer
            return True
        found.append(((*keys, *inner), node))
        return is_adapter(node) or (bool(inner) and issubclass(type(node), norms))

    jtu.tree_flatten_with_path(tree, is_leaf=look, is_leaf_takes_path=True)
    return found


def modules_by_path(model: PyTree) -> dict[str, eqx.Module]:
    """All modules, plain or adapted, that are not in an adapted one; the first at each path."""
    found: dict[str, eqx.Module] = {}
    for keys, node in modules_in(model):
        found.setdefault(path_str(keys), node)
    return found


def holds_adapters(tree: Any) -> bool:
    """Whether any layer of `tree` is adapted."""
    return any(is_adapter(leaf) for leaf in jax.tree.leaves(tree, is_leaf=is_adapter))


def adapted_layers(model: PyTree, *others: PyTree) -> Iterator[tuple[Any, ...]]:
    """The path of each adapted layer, its adapter, and the nodes of other trees at this place.

    An adapter inside another adapter belongs to that one, and is not listed.

    - `others`: trees that have the structure of `model` around its adapted layers, such as masks.
    """
    nodes, treedef = jtu.tree_flatten_with_path(model, is_leaf=is_adapter)
    parts = map(treedef.flatten_up_to, others)
    for (keys, node), *own in zip(nodes, *parts, strict=True):
        if is_adapter(node):
            yield path_str(keys), node, *own


def map_adapters(function: Callable[..., Any], model: PyTree, *others: PyTree) -> Any:
    """Put `function(path, adapter, *nodes)` in the place of each adapted layer.

    An adapter inside another adapter belongs to that one. A model's part, as `eqx.partition` gives
    it, has the same adapters, with `None` in the place of the other part.

    - `others`: as for `adapted_layers`. Everywhere else, the result is the last of the trees.
    """

    def replace(keys: KeyPath, *nodes: Any) -> Any:
        return function(path_str(keys), *nodes) if is_adapter(nodes[0]) else nodes[-1]

    return jtu.tree_map_with_path(replace, model, *others, is_leaf=is_adapter)


def layers_at(model: PyTree, paths: Iterable[str]) -> dict[str, Any]:
    """The modules of `model` at these paths, plain or adapted. Missing ones are left out.

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


def replace_layers(model: M, nodes: Mapping[str, Any]) -> M:
    """`model` with these nodes in the places of its layers, by path."""

    def replace(keys: KeyPath, node: Any) -> Any:
        return nodes.get(path_str(keys), node) if isinstance(node, eqx.Module) else node

    return jtu.tree_map_with_path(replace, model, is_leaf=_is_place(nodes), is_leaf_takes_path=True)


def nested_with(model: PyTree, paths: Iterable[str]) -> dict[str, list[str]]:
    """By path, a line for each adapter of `model` around the layer there, or inside of it."""
    carried = {path: type(adapter).__name__ for path, adapter in adapted_layers(model)}
    wanted = dict.fromkeys(paths)
    around = [(path, "inside", above) for path, above in _held(wanted, carried)]
    within = [(above, "around", path) for path, above in _held(carried, wanted)]
    found: dict[str, list[str]] = {}
    for path, where, other in (*around, *within):
        line = f"{show_path(path)}: {where} the {carried[other]} at {show_path(other)!r}"
        found.setdefault(path, []).append(f"{line}: merge or unwrap that first")
    return found


def norms_around(model: PyTree, paths: Iterable[str]) -> dict[str, str]:
    """By path, the path of the outermost norm (`NORMALISED`) around the layer there."""
    kinds = tuple(NORMALISED)
    norms = {path_str(keys) for keys, node in modules_in(model) if issubclass(type(node), kinds)}
    found: dict[str, str] = {}
    for path, norm in _held(paths, norms):
        found.setdefault(path, norm)
    return found


def refuse_second(path: str, found: Container[str], what: str) -> None:
    """**Raises:** `SelectionError` if `path` was found before."""
    if path in found:
        raise SelectionError(
            f"Two {what} have the path {show_path(path)!r}: a dict key in it holds a slash. "
            "Rename the key."
        )


def _held(paths: Iterable[str], holders: Collection[str]) -> Iterator[tuple[str, str]]:
    """Each of `paths` with each of the `holders` that is a path around it, outer ones first.

    Only the lengths of the holders are tried, so that deep paths cost no more than others.
    """
    lengths = sorted({len(holder) for holder in holders})
    for path in paths:
        for length in lengths:
            is_above = path[length : length + 1] == "/" if length else path != ""
            if is_above and path[:length] in holders:
                yield path, path[:length]


def _is_place(paths: Container[str]) -> Any:
    def is_place(keys: KeyPath, node: Any) -> bool:
        return isinstance(node, eqx.Module) and (is_adapter(node) or path_str(keys) in paths)

    return is_place
