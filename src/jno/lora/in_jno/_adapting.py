"""Stand-ins for functions of `jno.architectures.lora`, under jNO's names."""

import contextlib
import sys
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import jax.tree_util as jtu
import numpy as np
from jaxtyping import PRNGKeyArray, PyTree

from .. import _merge
from .._contract import LoRAWrapper, expect_model
from .._dispatch import Statistics, carry_out, plan_call
from .._errors import JnoLoraError, SelectionError, warn
from .._moved import moved
from .._paths import bullets, path_str
from .._planning import Spec, TargetLike, parse_specs, parse_wrapper
from .._registry import default_registry
from .._sets import AdapterSet, extract_adapters
from .._shared_arrays import names_to_resolve

JNO_ADAPTERS = "jno.architectures.lora"

# Keys of jNO's specs that are the call's, and the same in all of its specs.
DATA_KEYS = ("statistics", "calibrate")

# The adapters of the last solve by the identity of the merged model that jNO keeps. Models have no
# hash, so a weak reference takes the entry out when jNO drops the model.
_trained: dict[int, tuple[weakref.ref[Any], AdapterSet | JnoLoraError]] = {}


def _normalize_wrappers(wrapper: Any) -> tuple[Any, ...]:
    """`wrapper` as jNO stores it: a tuple of classes or of the given names.

    **Raises:** `SelectionError` for an unknown name or a class of jNO's own; otherwise as
    `parse_wrapper`.
    """
    items = wrapper if isinstance(wrapper, list | tuple) else [wrapper]
    for item in items:
        if isinstance(item, type) and item.__module__ == JNO_ADAPTERS:
            raise SelectionError(
                f"{item.__name__} comes from {JNO_ADAPTERS}. jno.lora stands in for them: "
                f"pass jno.lora.{item.__name__}, or its name. jno.lora.in_jno.disable() gives jNO "
                "its own adapters back."
            )
    tiers = parse_wrapper(default_registry(), wrapper).tiers
    if wrapper is None:
        return tuple(cls for tier in tiers for cls in tier)
    return tuple(items)


def apply_lora(
    model: Any,
    rank: int = 0,
    alpha: float = 1.0,
    *,
    key: PRNGKeyArray,
    target: TargetLike = None,
    specs: Iterable[Mapping[str, Any]] | None = None,
    wrappers: Any = None,
    param_mask: Any = None,
) -> Any:
    """`model` with adapters, from the specs that jNO's `Model` keeps (with the key `wrappers`).

    Adapters that the model carries train on. If it carries all that are asked for, it is returned.
    """
    if specs is None:
        if rank <= 0:
            return model
        specs = [{"target": target, "rank": rank, "alpha": alpha}]
    configs = list(specs)
    specs = [_spec_of(config, wrappers) for config in configs]
    mask = None if param_mask is None else _mask_of(model, param_mask)
    try:
        expect_model(model, "apply_lora")
        plan = plan_call(model, specs, Spec(alpha=1.0), mask, None)
        carriers = [row for row in plan.having("already adapted") if row.spec is not None]
        if carriers and not plan.wrapped:
            return model
        statistics = _statistics(model, configs, specs, mask)
        adapted = carry_out(model, plan, key=key, statistics=statistics)
    except SelectionError as err:
        constrained = _constrained_arrays(model, specs)
        if not constrained:
            raise
        raise SelectionError(f"{_why_not(constrained)}\n{err}") from err
    if names := sorted(names_to_resolve(adapted)):
        raise SelectionError(
            f"These adapters share {', '.join(map(repr, names))}, which `jno.lora.resolve` must "
            "hand to each adapter in the loss, and jNO's own loss does not call it. Choose another "
            "method (`vera` for `vera-shared`), or train `jno.lora.Net` in a loop of your own."
        )
    constrained = _constrained_arrays(adapted, specs) if mask is None else []
    if constrained:
        warn(_why_not(constrained))
    return adapted


def _spec_of(spec: Mapping[str, Any], wrappers: Any) -> dict[str, Any]:
    """A spec of jNO as a spec of `jno.lora`."""
    wrapper = spec.get("wrappers", spec.get("wrapper", wrappers))
    left_out = ("wrappers", *DATA_KEYS)
    fields = {name: value for name, value in spec.items() if name not in left_out}
    return {**fields, "wrapper": list(_normalize_wrappers(wrapper))}


def _statistics(
    model: Any, configs: list[Mapping[str, Any]], specs: list[dict[str, Any]], mask: Any
) -> Statistics | None:
    """The statistics that `lora` was given, or that its batches give in the model of this solve.

    A solve trains the model that it starts from, so the batches are looked at only now.
    """
    config = configs[0] if configs else {}
    if (calibration := config.get("calibrate")) is None:
        return config.get("statistics")
    batches, loss = calibration
    paramax = sys.modules.get("paramax")

    def loss_of_values(model: Any, batch: Any) -> Any:
        return loss(model if paramax is None else paramax.unwrap(model), batch)

    calibrate = moved("jno.lora", "calibrate")
    return calibrate(model, batches, loss_of_values, wrappers=None, specs=specs, param_mask=mask)


def merge_lora(model: Any) -> Any:
    """`model` merged. Its adapters are remembered for `trained_adapters`."""
    merged = _merge.merge_lora(model)
    try:
        adapters = extract_adapters(model)
    except JnoLoraError as err:  # jNO's solve goes on: only `trained_adapters` needs them
        adapters = err
    if isinstance(adapters, JnoLoraError) or len(adapters):
        place = id(merged)
        with contextlib.suppress(TypeError):  # a model that is a dict or a tuple
            reference = weakref.ref(merged, lambda _: _trained.pop(place, None))
            _trained[place] = (reference, adapters)
    return merged


def trained_adapters(module: Any) -> AdapterSet | None:
    """The adapters that were merged into `module`; `None` without adapters.

    **Raises:** the error of `extract_adapters`, if they cannot be taken out.
    """
    reference, adapters = _trained.get(id(module), (None, None))
    if reference is None or reference() is not module:
        return None
    if isinstance(adapters, JnoLoraError):
        raise adapters
    return adapters


def _mask_of(model: Any, mask: Any) -> PyTree[bool] | str:
    """jNO's mask in the structure of `model`.

    A mask of jNO may come from a model with other static fields, or hold the arrays only. So leaves
    are found by their paths.

    **Raises:** `SelectionError` for a mask whose every `True` is at a path that `model` lacks.
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


def _is_true(leaf: Any) -> bool:
    """Whether `leaf` is a true bool, of Python or of an array. Masks may hold functions too."""
    is_bool = isinstance(leaf, bool) or (
        getattr(leaf, "shape", None) == () and getattr(leaf, "dtype", None) == np.bool_
    )
    return is_bool and bool(leaf)


def _constrained_arrays(model: Any, specs: list[dict[str, Any]]) -> list[str]:
    """The paths, outside adapted layers, of targeted arrays that `constrain()` has wrapped."""
    paramax = sys.modules.get("paramax")
    if paramax is None:
        return []

    def is_constrained(node: Any) -> bool:
        return isinstance(node, paramax.AbstractUnwrappable)

    leaves = jtu.tree_flatten_with_path(
        model, is_leaf=lambda node: is_constrained(node) or isinstance(node, LoRAWrapper)
    )[0]
    paths = [path_str(keys) for keys, leaf in leaves if is_constrained(leaf)]
    if not paths:
        return []
    rules = [rule.on(model) for rule in parse_specs(default_registry(), specs, Spec(alpha=1.0))]
    return [path for path in paths if any(rule.matches(p) for rule in rules for p in _around(path))]


def _around(path: str) -> list[str]:
    """The path of an array, and the paths of the modules around it."""
    names = path.split("/")
    return ["/".join(names[:length]) for length in range(len(names) + 1)]


def _why_not(constrained: list[str]) -> str:
    return (
        "Layers whose weight is constrained get no adapter: paramax computes that weight anew in "
        "each evaluation, so there is no array to add an update to. These are constrained:\n"
        f"{bullets(constrained)}\n"
        "Constrain only layers that need no adapter: net.mask(M).constrain(...)."
    )
