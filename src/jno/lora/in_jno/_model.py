"""The methods that stand in for `Model.lora` and `Model.tune` of jNO."""

import dataclasses
import functools
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
from jaxtyping import PyTree

from .._dispatch import Statistics
from .._errors import SelectionError
from .._moved import moved
from .._planning import Spec, TargetLike, parse_specs
from .._registry import default_registry
from .._trainability import partial_lora_trainable_filter
from .._tree import holds_adapters
from ._adapting import DATA_KEYS, _normalize_wrappers

_SPEC_KEYS = tuple(field.name for field in dataclasses.fields(Spec))


def lora_of_model(original: Callable[..., Any]) -> Callable[..., Any]:
    """`Model.lora` with our arguments and names of adapters, which are checked at the call."""

    @functools.wraps(original)
    def lora(
        self: Any,
        rank: int = 4,
        alpha: float = 1.0,
        wrapper: Any = None,
        *,
        target: TargetLike = None,
        specs: Iterable[Mapping[str, Any]] | None = None,
        options: Mapping[str, Any] | None = None,
        statistics: Statistics | None = None,
        calibrate: Sequence[Any] | None = None,
    ) -> Any:
        if calibrate is not None:
            check = moved("jno.lora", "check_calibrate")
            batches, loss = check(calibrate, statistics)
            calibrate = (list(batches), loss)  # an iterator would serve only one solve
        call = {"target": target, "rank": rank, "alpha": alpha, "wrapper": wrapper}
        checked = _check_specs(specs, {**call, "options": options})
        if specs is None:
            original(self, rank, alpha, target=target, wrapper=wrapper)
        else:
            original(self, specs=[{k: spec[k] for k in call} for spec in checked])
        for config, spec in zip(self._lora_config, checked, strict=True):
            if spec["options"] is not None:
                config["options"] = dict(spec["options"])
            for name, value in zip(DATA_KEYS, (statistics, calibrate), strict=True):
                if value is not None:
                    config[name] = value
        return self

    return lora


def lora_of_call(original: Callable[..., Any]) -> Callable[..., Any]:
    """`ModelCall.lora`, which hands everything to its model."""

    @functools.wraps(original)
    def lora(
        self: Any, rank: int = 4, alpha: float = 1.0, wrapper: Any = None, **named: Any
    ) -> Any:
        self.model.lora(rank, alpha, wrapper, **named)
        return self

    return lora


def tune_of_model(original: Callable[..., Any]) -> Callable[..., Any]:
    """`Model.tune` that checks `lora`: a sweep itself only logs that a configuration failed."""

    @functools.wraps(original)
    def tune(self: Any, *, lora: list[Any] | None = None, **named: Any) -> Any:
        for choice in lora or ():
            if choice is None:
                continue
            if not isinstance(choice, list | tuple) or not 2 <= len(choice) <= 3:
                raise SelectionError(
                    "`lora` of a sweep lists `None`, (rank, alpha) and (rank, alpha, wrapper), but "
                    f"holds {choice!r}."
                )
            names = ("rank", "alpha", "wrapper")
            _check_specs([dict(zip(names, choice, strict=False))], {})
        return original(self, lora=lora, **named)

    return tune


class TrainableMask:
    """The attribute `_trainable_param_mask` of jNO's `Model`: which arrays of the model train.

    jNO trains all arrays of a model for which neither `lora` nor `freeze` was called. If the model
    carries adapters, these and the arrays outside train, and the layers in the adapters do not.
    """

    name = "_trainable_param_mask"

    def __get__(self, model: Any, owner: type) -> Any:
        if model is None:
            return self
        mask = vars(model).get(self.name)
        if model._lora_config is not None or not holds_adapters(model.module):
            return mask
        trains: PyTree[bool] = partial_lora_trainable_filter(model.module)
        return trains if mask is None else jax.tree.map(operator.and_, trains, mask)

    def __set__(self, model: Any, mask: Any) -> None:
        vars(model)[self.name] = mask


def _check_specs(
    specs: Iterable[Mapping[str, Any] | Spec] | None, call: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The specs, completed from the call.

    **Raises:** as `apply_lora` for bad specs, names and classes; `SelectionError` for a class of
    jNO's own.
    """
    whole = {**dict.fromkeys(_SPEC_KEYS), **call}
    if isinstance(specs, Iterable) and not isinstance(specs, Mapping | str):
        specs = [vars(spec) if isinstance(spec, Spec) else spec for spec in specs]
    given: list[Any] = specs if isinstance(specs, list) else []
    for spec in (whole, *(spec for spec in given if isinstance(spec, Mapping))):
        _normalize_wrappers(spec.get("wrapper"))
    parse_specs(default_registry(), specs, Spec(**whole))
    chosen = ({key: value for key, value in spec.items() if value is not None} for spec in given)
    return [{**whole, **spec} for spec in chosen] if specs is not None else [whole]
