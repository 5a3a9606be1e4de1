"""The layers of a model by their paths: find layers, detect adapters, replace layers."""

import dataclasses
import functools
import sys
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping
from typing import Any, Literal, TypeAlias, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree

from ._compute.precision import count_reals
from ._contract.coded import is_coded
from ._contract.wrapper import LoRAWrapper, is_adapter
from ._errors import PluginError, SelectionError
from ._paths import KeyPath, path_str, show_path
from ._showing.grouping import grouped

M = TypeVar("M")
_NAMED = 6  # how many layers, or groups of alike layers, a line names

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


def safely_applies(cls: type[LoRAWrapper], layer: PyTree) -> bool:
    """Whether `cls` applies to `layer`. `False` if it raises."""
    try:
        return bool(cls.applies_to(layer))
    except Exception:
        return False


def why_not(cls: type[LoRAWrapper], layer: PyTree) -> str | None:
    """Why `cls` does not apply to `layer`; `None` without a reason, or if it raises."""
    try:
        return cls.why_not(layer)
    except Exception:
        return None


@functools.singledispatch
def default_adapters(layer: PyTree) -> tuple[type[LoRAWrapper], ...]:
    """The adapters that calls with `wrapper=None` try on `layer`, after the defaults.

    An open function: `@default_adapters.register(MyLayer)` adds the adapters of a layer class. A
    class of Equinox, JAX or Python raises a `PluginError`.
    """
    return ()


_NOT_YOURS = {*sys.stdlib_module_names, "equinox", "jax", "jaxlib"}


def _register_default_adapters(cls: object, function: Any = None) -> Any:
    """`singledispatch`'s `register`, for layers that a user has chosen by choosing a library."""
    if not isinstance(cls, type) or cls.__module__.partition(".")[0] in _NOT_YOURS:
        raise PluginError(
            f"{getattr(cls, '__name__', cls)} gets its adapters by default from jno-lora alone, so "
            "that importing a plugin changes no call. Name the adapter in the call, or register a "
            "layer class of your own: @default_adapters.register(MyLayer)"
        )
    return _register(cls, function)


_register = default_adapters.register
default_adapters.register = _register_default_adapters  # pyright: ignore[reportAttributeAccessIssue]


@functools.singledispatch
def callable_for(layer: PyTree, model: PyTree) -> Callable[..., Any] | None:
    """The function that a `Net` calls instead of `model`, which contains `layer`.

    An open function, like `default_adapters`. `None` means the model itself.
    """
    return None


def callable_model(model: PyTree) -> Callable[..., Any]:
    """The function that a `Net` calls: `model`, or the function registered for one of its layers.

    **Raises:** `SelectionError` if the model cannot be called.
    """
    default = callable_for.dispatch(object)

    def is_registered(node: object) -> bool:
        return callable_for.dispatch(type(node)) is not default

    layers = jax.tree.leaves(model, is_leaf=is_registered)
    function = next(filter(None, (callable_for(layer, model) for layer in layers)), model)
    if not callable(function):
        raise SelectionError(
            f"The model of this net is a {type(model).__name__}, which cannot be called. Call the "
            "function that takes it: apply(net.module, x)"
        )
    return function


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


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """The layers that have matrices (arrays of two axes or more) but no adapter.

    - `sizes`: the parameters in these matrices, by the path of their layer.
    - `total`: the parameters of the whole model, without adapters.
    """

    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    total: int = 0

    @property
    def is_worth_a_line(self) -> bool:
        """Whether the matrices have at least one percent of the parameters."""
        return sum(self.sizes.values()) > 0.01 * self.total

    def __str__(self) -> str:
        left_out, layers = sum(self.sizes.values()), len(self.sizes)
        names = [path for path, _, _ in grouped((show_path(path), ()) for path in self.sizes)]
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        return (
            f"{left_out:,} parameters ({100 * left_out / max(self.total, 1):.0f} %) in {layers} "
            f"{'layer' if layers == 1 else 'layers'} have no adapter: "
            f"{', '.join(names[:_NAMED])}{more}"
        )


def layers_left_out(model: PyTree, total: int, wrapped: Container[KeyPath] = ()) -> LeftOut:
    """The layers of `model` with matrices outside of adapters, and outside of `wrapped` layers."""
    modules = {keys for keys, _ in modules_in(model)}
    sizes: dict[str, int] = {}
    for keys, leaf in jtu.tree_leaves_with_path(
        model, is_leaf=lambda node: is_adapter(node) or is_coded(node)
    ):
        outer = [keys[:length] for length in range(len(keys), -1, -1)]
        is_matrix = is_parameter(leaf) and len(leaf.shape) >= 2
        if is_matrix and not any(place in wrapped for place in outer):
            # An array outside of all modules counts as a layer.
            layer = path_str(next((place for place in outer if place in modules), keys))
            sizes[layer] = sizes.get(layer, 0) + count_reals(leaf)
    return LeftOut(sizes, total)


def count_plain(model: PyTree) -> int:
    """The parameters of `model`, without its adapters."""
    plain = map_adapters(lambda _, adapter: adapter.base, model)
    leaves = jax.tree.leaves(plain, is_leaf=is_coded)
    return sum(count_reals(leaf) for leaf in leaves if is_parameter(leaf))


def is_parameter(leaf: Any) -> bool:
    """Whether `leaf` is an array of real or complex numbers, or stands for such an array."""
    is_array = isinstance(leaf, jax.Array | np.ndarray | jax.ShapeDtypeStruct) or is_coded(leaf)
    return is_array and bool(jnp.issubdtype(leaf.dtype, jnp.inexact))


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
    outermost: dict[str, str] = {}
    for path, norm in enclosing(paths, norms):
        outermost.setdefault(path, norm)
    return outermost


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
