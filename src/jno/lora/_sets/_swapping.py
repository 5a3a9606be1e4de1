"""A set of adapters around the layers of a model, if it fits them."""

import functools
from collections.abc import Mapping
from typing import Any, TypeVar

import equinox as eqx
import jax
from jaxtyping import PyTree

from .._contract import LoRAWrapper, evaluated, expect_model, is_wrapper, why
from .._errors import SelectionError
from .._paths import bullets, nearest, show_path
from .._sharding import restored_layer
from .._tree import claims, layers_at, module_paths, norms_around, plain_layer, put_in
from ._adapter_set import AdapterSet, LooseAdapter, check_set

M = TypeVar("M")

# For how many of the paths that a model lacks the nearest one is named.
_HINTS = 12


def swap_adapters(model: M, adapters: AdapterSet) -> M:
    """`model` with exactly the adapters of a set: those it carries now are dropped.

    The initialisers do not run (no decomposition, no random numbers). If model and set have
    adapters of the same form at the same paths, the result has the structure of `model`, so a
    function compiled for the one runs the other without compiling again. May run inside `jit`.

    **Arguments:**

    - `model`: a plain model, or an adapted one.
    - `adapters`: a set that `extract_adapters`, `read_adapters` or a function of sets made.

    **Raises:** `SelectionError` that lists every path that is missing or in a norm, and every layer
    of another form or that the adapter's class does not apply to; that names the adapter which
    cannot be built; or if one of the arguments is of another kind.
    """
    expect_model(model, "swap_adapters")
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
    """What keeps `adapters` from fitting `model`: a line for each missing path, wrong array, layer
    that the adapter's class is not for, and layer in a norm.
    """
    found = misfits_by_path(model, adapters, layers_at(model, adapters))
    return [line for lines in found.values() for line in lines]


def misfits_by_path(
    model: PyTree, adapters: AdapterSet, layers: Mapping[str, Any]
) -> dict[str, list[str]]:
    """`misfits` by the path of the adapter, with the `layers_at(model, adapters)`."""
    missing = [path for path in adapters.adapters if path not in layers]
    known = module_paths(model) if missing else []
    norms = norms_around(model, adapters)
    found: dict[str, list[str]] = {}
    for path, adapter in adapters.adapters.items():
        layer = layers.get(path)
        if layer is not None:
            layer = layer.base if is_wrapper(layer) else layer
            lines = [f"{show_path(path)}/{problem}" for problem in adapter.layer.problems(layer)]
            if not lines and not evaluated(functools.partial(claims, adapter.wrapper), layer):
                lines.append(
                    f"{show_path(path)}: a {adapter.wrapper.__name__} is not for this "
                    f"{type(layer).__name__} (its `applies_to` says no)"
                )
            if path in norms:
                lines.append(
                    f"{show_path(path)}: inside the norm at {show_path(norms[path])!r}, which "
                    "rewrites the weight that the adapter would add to"
                )
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

    **Raises:** `SelectionError` that names the path, if an adapter cannot be built from its state.
    """
    layers = layers_at(model, adapters)
    built: dict[str, LoRAWrapper] = {}
    for path in adapters:
        adapter, layer = adapters[path], layers[path]
        try:
            built[path] = built_around(layer, adapter)
        except Exception as err:
            advice = "For the shapes: eqx.filter_eval_shape(swap_adapters, model, adapters)"
            raise SelectionError(
                f"The {adapter.wrapper.__name__} at {show_path(path)!r} cannot be built: "
                f"{why(err, layer, advice)}{_if_stacked(layer, adapter)}"
            ) from err
    return put_in(model, built, drop_others=drop_others)


def _if_stacked(layer: Any, adapter: LooseAdapter) -> str:
    """What to say of an adapter of which the first slice alone could be built."""
    try:
        one = jax.tree.map(lambda array: array[0], adapter)
        eqx.filter_eval_shape(built_around, layer, one)
    except Exception:
        return ""
    return (
        "\nIt is of a set that `stack_adapters` made. Give one of them: "
        "jax.tree.map(lambda a: a[index], stacked)"
    )


def built_around(layer: Any, adapter: LooseAdapter) -> LoRAWrapper:
    """`adapter` around `layer`, in the place of the adapter that it carries, if it carries one."""
    return restored_layer(
        adapter.wrapper, plain_layer(layer), adapter.state, adapter.rank, adapter.alpha
    )
