"""The methods that stand in for `Model.lora` and `Model.tune` of jNO."""

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .._contract import is_whole
from .._errors import SelectionError
from .._paths import nearest
from ._adapting import _normalize_wrappers

_SPEC_KEYS = ("target", "rank", "alpha", "wrapper", "options")


def lora_of_model(original: Callable[..., Any]) -> Callable[..., Any]:
    """`Model.lora` with `options`, names of adapters, and specs that are checked at the call."""

    @functools.wraps(original)
    def lora(
        self: Any,
        rank: int = 4,
        alpha: float = 1.0,
        wrapper: Any = None,
        *,
        target: str | None = None,
        specs: Iterable[Mapping[str, Any]] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Any:
        call = {"target": target, "rank": rank, "alpha": alpha, "wrapper": wrapper}
        checked = _check_specs(specs, {**call, "options": options})
        if specs is None:
            original(self, rank, alpha, target=target, wrapper=wrapper)
        else:
            original(self, specs=[{k: spec[k] for k in call} for spec in checked])
        for kept, spec in zip(self._lora_config, checked, strict=True):
            if spec["options"] is not None:
                kept["options"] = dict(spec["options"])
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
    specs: Iterable[Mapping[str, Any]] | None, call: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The specs, completed from the call.

    **Raises:** `SelectionError` for an unknown key or name, an invalid rank or regex; `PluginError`
    if a plugin cannot be used; `WrapperError` if a class breaks the contract.
    """
    if specs is not None and (isinstance(specs, Mapping | str) or not isinstance(specs, Iterable)):
        raise SelectionError(f"`specs` must be a list of dicts, but is {specs!r}.")
    if specs is not None and call.get("target") is not None:
        raise SelectionError("`target` and `specs` were both given. Put the target into each spec.")
    checked: list[dict[str, Any]] = []
    for index, spec in enumerate([{}] if specs is None else specs):
        label = "the call" if specs is None else f"specs[{index}]"
        if not isinstance(spec, Mapping):
            raise SelectionError(f"{label} must be a dict, but is {spec!r}.")
        for key in spec:
            if key not in _SPEC_KEYS:
                raise SelectionError(
                    f"{label} has an unknown key {key!r}; did you mean "
                    f"{nearest(str(key), _SPEC_KEYS, n=1)[0]!r}? "
                    f"A spec has the keys {', '.join(_SPEC_KEYS)}."
                )
        given = {key: value for key, value in spec.items() if value is not None}
        whole = {**dict.fromkeys(_SPEC_KEYS), **call, **given}
        if not is_whole(whole["rank"]) or whole["rank"] < 1:
            raise SelectionError(
                f"The rank of {label} must be a whole number from 1 on, but is {whole['rank']!r}."
            )
        _check_target(whole["target"], label)
        _normalize_wrappers(whole["wrapper"])
        checked.append(whole)
    if not checked:
        raise SelectionError("`specs` is empty. Give at least one spec, or leave it out.")
    return checked


def _check_target(target: Any, label: str) -> None:
    if target is None:
        return
    try:
        re.compile(target)
    except (re.error, TypeError) as err:
        raise SelectionError(
            f"The target of {label} must be a regex, but is {target!r}: {err}."
        ) from err
