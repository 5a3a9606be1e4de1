"""Stand-ins for functions of `jno.architectures.lora`, which take the same arguments."""

import contextlib
import sys
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.tree_util as jtu
import numpy as np
from jaxtyping import PRNGKeyArray, PyTree

import jno.lora
from jno.lora import AdapterSet, JnoLoraError, SelectionError, Spec
from jno.lora.extending import (
    adapted_layers,
    bullets,
    default_registry,
    names_to_resolve,
    path_str,
    plan_call,
    show_path,
    warn,
)

JNO_ADAPTERS = "jno.architectures.lora"

# The adapters of the last solve, by the identity of jNO's merged model. Models are not hashable, so
# a weak reference removes the entry when jNO drops the model.
_trained: dict[int, tuple[weakref.ref[Any], AdapterSet | JnoLoraError]] = {}


def normalize_wrappers(wrapper: object) -> tuple[object, ...]:
    """`wrapper` as jNO stores it: a tuple of the given classes and names, or of the defaults.

    **Raises:** `SelectionError` for one of jNO's own classes; `PluginError` if `wrapper` is `None`
    and the zoo cannot be used.
    """
    if wrapper is None:
        return default_registry().defaults()
    items = tuple(wrapper) if isinstance(wrapper, list | tuple) else (wrapper,)
    for item in items:
        if isinstance(item, type) and item.__module__ == JNO_ADAPTERS:
            raise SelectionError(
                f"{item.__name__} comes from {JNO_ADAPTERS}. jno.lora stands in for them: "
                f"pass jno.lora.{item.__name__}, or its name. jno_lora_jno.disable() gives jNO "
                "its own adapters back."
            )
    return items


def apply_lora(
    model: PyTree,
    rank: int = 0,
    alpha: float = 1.0,
    *,
    key: PRNGKeyArray,
    target: Any = None,
    specs: Iterable[Mapping[str, Any]] | None = None,
    wrappers: object = None,
    param_mask: PyTree = None,
) -> PyTree:
    """`model` with adapters, from the specs that jNO's `Model` stores (with the key `wrappers`).

    Existing adapters continue to train. If no adapter is missing, the model is returned as is.
    """
    if specs is None:
        if rank <= 0:
            return model
        specs = [{"target": target, "rank": rank, "alpha": alpha}]
    configs = list(specs)
    specs = [_spec_of(config, wrappers) for config in configs]
    mask = None if param_mask is None else _mask_of(model, param_mask)
    call: dict[str, Any] = {"specs": specs, "mask": mask}
    try:
        if any(adapted_layers(model)):
            plan = jno.lora.plan_lora(model, **call)
            if plan.carriers and not plan.wrapped:
                return model
        statistics = _statistics(model, configs, call)
        adapted = jno.lora.apply_lora(model, key=key, statistics=statistics, **call)
    except SelectionError as err:
        if constrained := _constrained_layers(model, specs):
            raise SelectionError(f"{_why_not(constrained)}\n{err}") from err
        raise
    if names := sorted(names_to_resolve(adapted)):
        raise SelectionError(
            f"These adapters share {', '.join(map(repr, names))}, which `jno.lora.resolve` must "
            "hand to each adapter in the loss, and jNO's own loss does not call it. Choose another "
            "method (`vera` for `vera-shared`), or train `jno.lora.Net` in a loop of your own."
        )
    if mask is None and (constrained := _constrained_layers(model, specs)):
        warn(_why_not(constrained))
    return adapted


def _spec_of(config: Mapping[str, Any], wrappers: object) -> dict[str, Any]:
    """Convert a spec that jNO stores into a spec of `jno.lora`."""
    wrapper = config.get("wrappers", config.get("wrapper", wrappers))
    left_out = ("wrappers", "statistics", "statistics_from")
    fields = {name: value for name, value in config.items() if name not in left_out}
    return {"alpha": 1.0, **fields, "wrapper": normalize_wrappers(wrapper)}


def _statistics(
    model: PyTree, configs: list[Mapping[str, Any]], call: Mapping[str, Any]
) -> Mapping[str, Any] | None:
    """The statistics passed to `lora`, or computed from its batches on the model of this solve.

    They are computed only now because a solve trains the model that it starts from.
    """
    config = configs[0] if configs else {}  # `statistics` and `statistics_from` are the same in all
    if (source := config.get("statistics_from")) is None:
        return config.get("statistics")
    batches, loss = source
    paramax = sys.modules.get("paramax")

    def loss_of_values(model: PyTree, batch: PyTree) -> PyTree:
        return loss(model if paramax is None else paramax.unwrap(model), batch)

    from jno_lora_zoo import collect_statistics  # here, because jNO imports this module

    return collect_statistics(model, batches, loss_of_values, wrapper=None, **call)


def merge_lora(model: PyTree) -> PyTree:
    """Merge `model`, and record its adapters for `adapters_merged_into`."""
    merged = jno.lora.merge_lora(model)
    try:
        adapters = jno.lora.extract_adapters(model)
    except JnoLoraError as err:  # the result of the solve is worth more than its adapters
        adapters = err
    if isinstance(adapters, JnoLoraError) or len(adapters):
        place = id(merged)
        with contextlib.suppress(TypeError):  # a model that is a dict or a tuple
            reference = weakref.ref(merged, lambda _: _trained.pop(place, None))
            _trained[place] = (reference, adapters)
    return merged


def adapters_merged_into(module: PyTree) -> AdapterSet | None:
    """The adapters that were merged into `module`; `None` if there were no adapters.

    **Raises:** the error of `extract_adapters`, if the adapters could not be extracted.
    """
    reference, adapters = _trained.get(id(module), (None, None))
    if reference is None or reference() is not module:
        return None
    if isinstance(adapters, JnoLoraError):
        raise adapters
    return adapters


def _mask_of(model: PyTree, mask: PyTree) -> PyTree[bool] | str:
    """Convert jNO's mask to the structure of `model`.

    Leaves are found by their paths, because jNO's mask may come from a model with other static
    fields, or contain only the arrays.

    **Raises:** `SelectionError` if `model` lacks all paths at which the mask is `True`.
    """
    if isinstance(mask, str):
        return mask
    selected = {keys for keys, leaf in jtu.tree_flatten_with_path(mask)[0] if _is_true(leaf)}
    leaves, treedef = jtu.tree_flatten_with_path(model)
    bools = [any(keys[:n] in selected for n in range(len(keys) + 1)) for keys, _ in leaves]
    if selected and not any(bools):
        paths = sorted(path_str(keys) for keys in selected)
        raise SelectionError(
            f"The mask selects no leaf of this {type(model).__name__}: it is True at\n"
            f"{bullets(paths)}\nand the model has other paths. Build the mask from `net.module`."
        )
    return jtu.tree_unflatten(treedef, bools)


def _is_true(leaf: PyTree) -> bool:
    """Whether `leaf` is true, as a Python bool or a bool array. Masks may contain functions too."""
    if isinstance(leaf, bool):
        return leaf
    return getattr(leaf, "shape", None) == () and leaf.dtype == np.bool_ and bool(leaf)


def _constrained_layers(model: PyTree, specs: list[dict[str, Any]]) -> list[str]:
    """The paths of the layers that would get an adapter if `constrain()` had left them alone."""
    paramax = sys.modules.get("paramax")
    if paramax is None:
        return []

    def is_constrained(node: object) -> bool:
        return isinstance(node, paramax.AbstractUnwrappable)

    if not any(map(is_constrained, jax.tree.leaves(model, is_leaf=is_constrained))):
        return []
    call, values = Spec(alpha=1.0), paramax.unwrap(model)
    try:
        adapted, free = (plan_call(x, specs, call, None, None).wrapped for x in (model, values))
    except JnoLoraError:  # the specs are wrong; the call itself raises that error
        return []
    return [show_path(row.path) for row in free if row.path not in {r.path for r in adapted}]


def _why_not(constrained: list[str]) -> str:
    return (
        "Layers whose weight is constrained get no adapter: paramax computes that weight anew in "
        "each evaluation, so there is no array to add an update to. These are constrained:\n"
        f"{bullets(constrained)}\n"
        "Constrain only layers that need no adapter: net.mask(M).constrain(...)."
    )
