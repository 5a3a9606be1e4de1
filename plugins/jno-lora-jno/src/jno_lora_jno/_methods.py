"""The methods that replace jNO's `Model.lora` and `Model.tune`."""

import functools
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
from jaxtyping import PyTree

from jno.lora import SelectionError, Spec, partial_lora_trainable_filter, plan_lora
from jno.lora.extending import adapted_layers

from ._functions import normalize_wrappers


def lora_of_model(original: Callable[..., Any]) -> Callable[..., Any]:
    """`Model.lora` with our arguments and adapter names, which are checked at the call."""

    @functools.wraps(original)
    def lora(
        self: Any,
        rank: int = 4,
        alpha: float = 1.0,
        wrapper: Any = None,
        *,
        target: Any = None,
        specs: Iterable[Any] | None = None,
        options: Mapping[str, Any] | None = None,
        statistics: Mapping[str, PyTree] | None = None,
        statistics_from: Sequence[Any] | None = None,
    ) -> Any:
        if statistics_from is not None:
            from jno_lora_zoo import check_statistics_from  # here, because jNO imports this module

            batches, loss = check_statistics_from(statistics_from, statistics)
            statistics_from = (list(batches), loss)  # an iterator would serve only one solve
        call = Spec(target=target, rank=rank, alpha=alpha, wrapper=wrapper, options=options)
        checked = _checked_specs(specs, call)
        original(self, specs=checked, wrapper=checked[0]["wrapper"])
        for config, spec in zip(self._lora_config, checked, strict=True):
            options = spec["options"] and dict(spec["options"])
            extra = {"options": options, "statistics": statistics}
            extra["statistics_from"] = statistics_from
            config.update((key, value) for key, value in extra.items() if value is not None)
        return self

    return lora


def lora_of_call(original: Callable[..., Any]) -> Callable[..., Any]:
    """`ModelCall.lora`, which passes everything to its model."""

    @functools.wraps(original)
    def lora(
        self: Any, rank: int = 4, alpha: float = 1.0, wrapper: Any = None, **named: Any
    ) -> Any:
        self.model.lora(rank, alpha, wrapper, **named)
        return self

    return lora


def tune_of_model(original: Callable[..., Any]) -> Callable[..., Any]:
    """`Model.tune` that checks `lora`, because a sweep only logs failed configurations."""

    @functools.wraps(original)
    def tune(self: Any, *, lora: list[object] | None = None, **named: Any) -> Any:
        for choice in lora or ():
            if choice is None:
                continue
            if not isinstance(choice, list | tuple) or not 2 <= len(choice) <= 3:
                raise SelectionError(
                    "`lora` of a sweep lists `None`, (rank, alpha) and (rank, alpha, wrapper), but "
                    f"holds {choice!r}."
                )
            names = ("rank", "alpha", "wrapper")
            _checked_specs(None, Spec(**dict(zip(names, choice, strict=False))))
        return original(self, lora=lora, **named)

    return tune


class TrainableMask:
    """The attribute `_trainable_param_mask` of jNO's `Model`: which arrays of the model train.

    jNO trains all arrays of a model for which neither `lora` nor `freeze` was called. If the model
    has adapters, the adapters and the arrays outside them train, but not the adapted layers.
    """

    name = "_trainable_param_mask"

    def __get__(self, model: Any, owner: type) -> Any:
        if model is None:
            return self
        mask = vars(model).get(self.name)
        if model._lora_config is not None or not any(adapted_layers(model.module)):
            return mask
        trains: PyTree[bool] = partial_lora_trainable_filter(model.module)
        return trains if mask is None else jax.tree.map(operator.and_, trains, mask)

    def __set__(self, model: Any, mask: PyTree) -> None:
        vars(model)[self.name] = mask


def _checked_specs(specs: object, call: Spec) -> list[dict[str, Any]]:
    """The specs, completed from the call; without specs, the call is the only spec.

    - `call`: a `Spec` of the arguments of the call.

    **Raises:** as `apply_lora` for bad specs, names and classes; `SelectionError` for one of jNO's
    own classes.
    """
    given: Any = specs
    if isinstance(specs, Iterable) and not isinstance(specs, Mapping | str):
        given = [vars(spec) if isinstance(spec, Spec) else spec for spec in specs]
    dicts = [spec for spec in given if isinstance(spec, Mapping)] if isinstance(given, list) else []
    for spec in (vars(call), *dicts):
        normalize_wrappers(spec.get("wrapper"))
    # An empty model has no layers to select, so only the arguments are checked.
    plan_lora(
        (),
        call.rank,
        call.alpha,
        target=call.target,
        specs=given,
        wrapper=call.wrapper,
        options=call.options,
    )
    if specs is None:
        return [vars(call)]
    chosen = ({key: value for key, value in spec.items() if value is not None} for spec in dicts)
    return [{**vars(call), **spec} for spec in chosen]
