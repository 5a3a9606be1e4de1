"""The methods that stand in for `Model.lora` and `Model.tune` of jNO."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .._errors import SelectionError
from .._planning import Spec, TargetLike, parse_specs
from .._registry import default_registry
from ._adapting import _normalize_wrappers

_SPEC_KEYS = tuple(field.name for field in dataclasses.fields(Spec))


def lora_of_model(original: Callable[..., Any]) -> Callable[..., Any]:
    """`Model.lora` with `options`, names of adapters, and specs that are checked at the call."""

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
    ) -> Any:
        call = {"target": target, "rank": rank, "alpha": alpha, "wrapper": wrapper}
        checked = _check_specs(specs, {**call, "options": options})
        if specs is None:
            original(self, rank, alpha, target=target, wrapper=wrapper)
        else:
            original(self, specs=[{k: spec[k] for k in call} for spec in checked])
        for config, spec in zip(self._lora_config, checked, strict=True):
            if spec["options"] is not None:
                config["options"] = dict(spec["options"])
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
