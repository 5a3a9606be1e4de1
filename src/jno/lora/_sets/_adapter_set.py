"""Adapters without their model: taken out of one, and put around the layers of another."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.tree_util as jtu
from jaxtyping import Array, PyTree

from .._contract import LoRAWrapper, is_wrapper
from .._errors import SelectionError
from .._handle import refuse_net
from .._paths import bullets, nearest, path_str, show_path
from .._sharding import restored_layer
from .._stacking import over_stack
from ._places import layers_at, module_paths, plain_layer, put_in, refuse_second

M = TypeVar("M")

# For how many of the paths that a model lacks the nearest one is named.
_HINTS = 12


@dataclasses.dataclass(frozen=True)
class LayerForm:
    """What a layer must look like for an adapter to fit.

    - `layer`: the name of its class.
    - `arrays`: path, shape and dtype of each of its arrays, those of a stack with all their axes.
    - `stack_ndim`: how many leading axes come before one layer's own.
    """

    layer: str
    arrays: tuple[tuple[str, tuple[int, ...], str], ...]
    stack_ndim: int = 0

    @classmethod
    def of(cls, layer: Any, stack_ndim: int) -> "LayerForm":
        """The form of `layer`."""
        found = (
            (path_str(keys), tuple(leaf.shape), str(leaf.dtype))
            for keys, leaf in jtu.tree_leaves_with_path(layer)
            if eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)
        )
        return cls(type(layer).__name__, tuple(found), stack_ndim)

    def __str__(self) -> str:
        arrays = ", ".join(f"{path} {_array((shape, dtype))}" for path, shape, dtype in self.arrays)
        return f"{self.layer}({arrays})"

    def problems(self, layer: Any) -> list[str]:
        """What keeps `layer` from having this form, apart from the name of its class."""
        # A subclass, or a class of the same arrays, computes with the same weights.
        here = {path: (shape, dtype) for path, shape, dtype in LayerForm.of(layer, 0).arrays}
        wanted = {path: (shape, dtype) for path, shape, dtype in self.arrays}
        return [
            f"{path}: the adapter was made for {_array(wanted.get(path))}, the "
            f"{type(layer).__name__} has {_array(here.get(path))}"
            for path in dict.fromkeys([*wanted, *here])
            if wanted.get(path) != here.get(path)
        ]


class LooseAdapter(eqx.Module):
    """One adapter without its layer.

    - `state`: its arrays, as `LoRAWrapper.state()` gives them; those of a stack are stacked.
    - `wrapper`, `rank`, `alpha`: how it is built again. The rank is the effective one.
    - `layer`: the form of the layer that it was made for.
    """

    state: dict[str, Array]
    wrapper: type[LoRAWrapper] = eqx.field(static=True)
    rank: int = eqx.field(static=True)
    alpha: float = eqx.field(static=True)
    layer: LayerForm = eqx.field(static=True)


class AdapterSet(eqx.Module):
    """The adapters of a model by the paths of their layers, without the model. A pytree.

    Made by `extract_adapters`, put around the layers of a model by `swap_adapters`.
    """

    adapters: dict[str, LooseAdapter]

    def __len__(self) -> int:
        return len(self.adapters)

    def __iter__(self) -> Iterator[str]:
        """The paths."""
        return iter(self.adapters)

    def __getitem__(self, path: str) -> LooseAdapter:
        return self.adapters[path]


def check_set(given: Any, what: str) -> None:
    """**Raises:** `SelectionError` if what was given as `what` is no set."""
    if not isinstance(given, AdapterSet):
        raise SelectionError(
            f"`{what}` must be an AdapterSet, but is of type {type(given).__name__}. "
            "extract_adapters(model) gives that of a model, read_adapters(path) that of a file."
        )


def listed_sets(sets: Any) -> list[AdapterSet]:
    """`sets` as a list.

    **Raises:** `SelectionError` if it is none, or holds something else than sets.
    """
    if isinstance(sets, AdapterSet) or not isinstance(sets, Iterable):
        raise SelectionError(
            f"`sets` must be a list of AdapterSets, but is of type {type(sets).__name__}. Of a "
            "single set, give a list: [adapters]"
        )
    listed = list(sets)
    for index, one in enumerate(listed):
        check_set(one, f"sets[{index}]")
    return listed


def extract_adapters(model: PyTree) -> AdapterSet:
    """The adapters of `model`, without their layers.

    **Arguments:**

    - `model`: an adapted model.

    **Returns:** an `AdapterSet`; empty for a model without adapters.

    **Raises:** `SelectionError` if two adapted layers have the same slash-joined path (a dict key
    that holds a slash), which no file and no set could tell apart; or if `model` is a `Net`.
    """
    refuse_net(model, "extract_adapters")
    found: dict[str, LooseAdapter] = {}
    for keys, node in jtu.tree_leaves_with_path(model, is_leaf=is_wrapper):
        if not is_wrapper(node):
            continue
        path = path_str(keys)
        refuse_second(path, found, "adapted layers")
        cls = type(node)
        ndim = cls.stack_ndim(node.base)
        state = over_stack(lambda w: dict(w.state()), ndim)(node)
        form = LayerForm.of(node.base, ndim)
        found[path] = LooseAdapter(state, cls, node.rank, node.alpha, form)
    return AdapterSet(found)


def swap_adapters(model: M, adapters: AdapterSet) -> M:
    """`model` with exactly the adapters of a set: those it carries now are dropped.

    The initialisers do not run (no decomposition, no random numbers). If model and set have
    adapters of the same form at the same paths, the result has the structure of `model`, so a
    function compiled for the one runs the other without compiling again. May run inside `jit`.

    **Arguments:**

    - `model`: a plain model, or an adapted one.
    - `adapters`: a set that `extract_adapters`, `load_adapters` or a function of sets made.

    **Raises:** `SelectionError` that lists every path that is missing and every layer of another
    form; or if one of the arguments is of another kind.
    """
    refuse_net(model, "swap_adapters")
    check_set(adapters, "adapters")
    # Dropped first: adapters around a block hide the layers in it, and those in a block change it.
    plain = put_in(model, {}, drop_others=True)
    problems = misfits(plain, adapters)
    if problems:
        raise SelectionError(
            f"These adapters do not fit the model:\n{bullets(problems)}\n"
            "Swap them into the model that they were made for, or into one of the same form."
        )
    return put_around(plain, adapters, drop_others=True)


def misfits(model: PyTree, adapters: AdapterSet) -> list[str]:
    """What keeps `adapters` from fitting `model`: a line for each missing path and wrong array."""
    found = misfits_by_path(model, adapters, layers_at(model, adapters))
    return [line for lines in found.values() for line in lines]


def misfits_by_path(
    model: PyTree, adapters: AdapterSet, layers: Mapping[str, Any]
) -> dict[str, list[str]]:
    """`misfits` by the path of the adapter, with the `layers_at(model, adapters)`."""
    missing = [path for path in adapters.adapters if path not in layers]
    known = module_paths(model) if missing else []
    found: dict[str, list[str]] = {}
    for path, adapter in adapters.adapters.items():
        layer = layers.get(path)
        if layer is not None:
            layer = layer.base if is_wrapper(layer) else layer
            lines = [f"{show_path(path)}/{problem}" for problem in adapter.layer.problems(layer)]
        else:
            # Looking for the nearest of many paths is slow, and a few hints are enough.
            near = nearest(path, known, n=1) if path in missing[:_HINTS] else []
            hint = f" (the nearest is {show_path(near[0])!r})" if near else ""
            lines = [f"{show_path(path)}: the model has no layer there{hint}"]
        if lines:
            found[path] = lines
    return found


def put_around(model: M, adapters: AdapterSet, *, drop_others: bool) -> M:
    """`model` with `adapters`, which fit it, around its layers.

    - `drop_others`: whether the adapters at other paths are dropped, or stay.
    """
    layers = layers_at(model, adapters)
    built = {path: built_around(layers[path], adapters[path]) for path in adapters}
    return put_in(model, built, drop_others=drop_others)


def built_around(layer: Any, adapter: LooseAdapter) -> LoRAWrapper:
    """`adapter` around `layer`, in the place of the adapter that it carries, if it carries one."""
    return restored_layer(
        adapter.wrapper, plain_layer(layer), adapter.state, adapter.rank, adapter.alpha
    )


def _array(form: tuple[tuple[int, ...], str] | None) -> str:
    return "no such array" if form is None else f"{form[1]}{list(form[0])}"
