"""Put a set of adapters around the layers of a model."""

from collections.abc import Mapping
from functools import partial
from typing import Any, TypeVar

import equinox as eqx
import jax
from jaxtyping import PyTree

from .._contract import LoRAWrapper, call_or_trace, expect_model, is_adapter
from .._errors import SelectionError, failing
from .._merge import plain_layer
from .._paths import FEW, bullets, nearest, show_path, show_place
from .._sharding import restored_layer
from .._shared_arrays import filler, names_shared_in, put_shared
from .._tree import (
    adapted_layers,
    claims,
    layers_at,
    map_adapters,
    modules_by_path,
    norms_around,
    replace_layers,
)
from ._adapter_set import AdapterSet, LooseAdapter

M = TypeVar("M")


def swap_adapters(model: M, adapters: AdapterSet) -> M:
    """`model` with exactly the adapters of a set. Drops the adapters that it carries now.

    Initialisers do not run. If model and set have adapters of the same structure at the same paths,
    the result has the structure of `model`, so a compiled function does not compile again. May run
    inside `jit`.

    **Arguments:**

    - `model`: a plain model, or an adapted one, in any precision.
    - `adapters`: a set, as `extract_adapters`, `read_adapters` and the functions of sets return it.
        Its arrays keep their dtypes.

    **Raises:** `SelectionError` that lists every path that is missing or in a norm, and every layer
    with other arrays or that the adapter's class does not apply to; or that names the adapter that
    cannot be built.
    """
    expect_model(model, "swap_adapters")
    # An adapter around a block hides its layers, and an adapter inside changes the block. So all
    # are dropped before the set is compared with the model.
    former: dict[tuple[str, type], dict[str, Any]] = {}
    fill = filler(model)

    def drop(path: str, adapter: LoRAWrapper) -> Any:
        former[path, type(adapter)] = settings_of(adapter)
        return plain_layer(fill(adapter))

    plain = map_adapters(drop, model)
    check_fit(plain, adapters, "These adapters")

    def restored(path: str, new: LoRAWrapper) -> LoRAWrapper:
        return with_settings(new, former.get((path, type(new)), {}))

    return map_adapters(restored, put_around(plain, adapters))


def check_fit(model: PyTree, adapters: AdapterSet, what: str) -> None:
    """**Raises:** `SelectionError` that lists the `misfits`, or if `adapters` is not a set."""
    if not isinstance(adapters, AdapterSet):
        raise SelectionError(
            f"{what} must be an AdapterSet, but are of type {type(adapters).__name__}. "
            "extract_adapters(model) takes it from a model, read_adapters(path) from a file."
        )
    lines = [line for of_path in misfits(model, adapters).values() for line in of_path]
    if lines:
        raise SelectionError(f"{what} do not fit the model:\n{bullets(lines)}")


def misfits(model: PyTree, adapters: AdapterSet) -> dict[str, list[str]]:
    """Why `adapters` do not fit `model`, as lines by path."""
    layers, norms = layers_at(model, adapters), norms_around(model, adapters)
    missing = [path for path in adapters if path not in layers]
    paths = list(modules_by_path(model)) if missing else []
    # The search for the nearest of many paths is slow, and a few hints are enough.
    near = {path: nearest(path, paths, n=1) for path in missing[:FEW]}
    by_path: dict[str, list[str]] = {}
    for path, adapter in adapters.adapters.items():
        layer = layers.get(path)
        layer = layer.base if is_adapter(layer) else layer
        if layer is None:
            hint = f" (the nearest is {show_path(near[path][0])!r})" if near.get(path) else ""
            lines = [f": the model has no layer there{hint}"]
        elif path in norms:
            lines = [
                f": inside the norm at {show_path(norms[path])!r}, which rewrites the weight that "
                "the adapter would add to"
            ]
        elif problems := adapter.layer.problems(layer):
            lines = [f"/{problem}" for problem in problems]
        elif not call_or_trace(partial(claims, adapter.wrapper), layer):
            cls, kind = adapter.wrapper.__name__, type(layer).__name__
            lines = [f": a {cls} is not for this {kind} (its `applies_to` says no)"]
        else:
            continue
        by_path[path] = [f"{show_path(path)}{line}" for line in lines]
    return by_path


def put_around(model: M, adapters: AdapterSet) -> M:
    """`model` with `adapters`, which fit it, around its layers. Adapters at other paths stay.

    **Raises:** `SelectionError` that names the path, if an adapter cannot be built from its state;
    or if adapters at other paths share an array of a name that `adapters` hold as well.
    """
    for name in sorted(shared_by_others(model, adapters) & adapters.shared.keys()):
        raise SelectionError(
            f"The model's other adapters share an array {name!r} already, and these adapters come "
            "with an array of that name. Unwrap the model's adapters first."
        )
    layers = layers_at(model, adapters)
    built: dict[str, LoRAWrapper] = {}
    for path, adapter in adapters.adapters.items():
        with failing(f"build {show_place(adapter.wrapper, path)}", SelectionError):
            built[path] = built_around(layers[path], adapter)
    model = replace_layers(model, built)
    return put_shared(model, adapters.shared) if names_shared_in(built) else model


def shared_by_others(model: PyTree, adapters: AdapterSet) -> set[str]:
    """The names of the arrays that adapters of `model` at other paths share."""
    if not adapters.shared:
        return set()
    elsewhere = [node for path, node in adapted_layers(model) if path not in adapters.adapters]
    return names_shared_in(elsewhere)


def built_around(layer: Any, adapter: LooseAdapter) -> LoRAWrapper:
    """`adapter` around `layer`. It replaces the adapter that the layer carries, if any."""
    plain = plain_layer(layer) if is_adapter(layer) else layer
    return restored_layer(adapter.wrapper, plain, adapter.state, adapter.rank, adapter.alpha)


def settings_of(adapter: LoRAWrapper) -> dict[str, Any]:
    """By field, the settings of `adapter` that no state holds, such as dropout."""
    return {
        name: value
        for name, value in vars(adapter).items()
        if name != "base" and isinstance(value, eqx.Module)
        if not any(map(eqx.is_array, jax.tree.leaves(value)))
    }


def with_settings(adapter: LoRAWrapper, settings: Mapping[str, Any]) -> LoRAWrapper:
    """`adapter` with the settings that it lacks."""
    names = [name for name in settings if getattr(adapter, name) is None]
    if not names:
        return adapter
    where = lambda a: [getattr(a, name) for name in names]  # noqa: E731
    return eqx.tree_at(where, adapter, [settings[n] for n in names], is_leaf=lambda x: x is None)
