"""Replace jNO's adapters by ours wherever jNO uses them."""

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, NoReturn

from jno.lora import JnoLoraError, LoRAWrapper, lora_trainable_filter, partial_lora_trainable_filter

from . import _functions, _methods
from ._installs import describe_jno, jno_version
from ._methods import TrainableMask

# By their names in jNO's modules.
_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "_normalize_wrappers": _functions.normalize_wrappers,
    "apply_lora": _functions.apply_lora,
    "merge_lora": _functions.merge_lora,
    "lora_trainable_filter": lora_trainable_filter,
    "partial_lora_trainable_filter": partial_lora_trainable_filter,
}
_METHODS: Mapping[tuple[str, str], Callable[..., Any]] = {
    ("Model", "lora"): _methods.lora_of_model,
    ("Model", "tune"): _methods.tune_of_model,
    ("ModelCall", "lora"): _methods.lora_of_call,
}


class Replacement:
    """The replacement of jNO's adapters by ours, in effect from `put` to `take_back`."""

    def __init__(self) -> None:
        """Find the places, and check that our functions take the arguments of jNO's functions.

        **Raises:** `JnoLoraError` that names jNO's version and the differences.
        """
        adapters = _import(_functions.JNO_ADAPTERS)
        _import("jno.core")
        trace = _import("jno.trace")
        problems: list[str] = []
        # Pairs of (theirs, ours): objects to swap in modules, and methods to swap in their classes.
        self._pairs: list[tuple[object, object]] = []
        self._methods: list[tuple[type, str, object, object]] = []
        for name, ours in {"LoRAWrapper": LoRAWrapper, **_FUNCTIONS}.items():
            theirs = getattr(adapters, name, None)
            problems += _differences(f"{adapters.__name__}.{name}", theirs, ours)
            self._pairs.append((theirs, ours))
        for (owner, name), stand_in in _METHODS.items():
            cls: Any = getattr(trace, owner, None)
            theirs, where = getattr(cls, name, None), f"{trace.__name__}.{owner}.{name}"
            if theirs is None:
                problems.append(f"{where} is missing")
                continue
            ours = stand_in(theirs)
            problems += _differences(where, theirs, ours)
            self._methods.append((cls, name, theirs, ours))
        self._model: Any = getattr(trace, "Model", None)
        freeze = getattr(self._model, "freeze", None)
        if not inspect.isfunction(freeze) or TrainableMask.name not in freeze.__code__.co_names:
            problems.append(f"{trace.__name__}.Model.freeze does not set {TrainableMask.name}")
        if problems:
            raise JnoLoraError(
                f"The adapters of jno.lora cannot be used by {describe_jno()}, which differs from "
                f"the versions that are known (0.2.3 to 0.4.2):\n  - " + "\n  - ".join(problems)
            )

    def put(self) -> None:
        """Make jNO use our adapters."""
        _swap({id(theirs): ours for theirs, ours in self._pairs})
        for cls, name, _, ours in self._methods:
            setattr(cls, name, ours)
        setattr(self._model, TrainableMask.name, TrainableMask())

    def take_back(self) -> None:
        """Make jNO use its own adapters again, also in modules imported since."""
        _swap({id(ours): theirs for theirs, ours in self._pairs})
        for cls, name, theirs, _ in self._methods:
            setattr(cls, name, theirs)
        delattr(self._model, TrainableMask.name)


def forbid_lora(reason: str) -> None:
    """Make jNO's `net.lora` raise, because jNO's core would silently train our adapters wrong."""

    def lora(*_: object, **__: object) -> NoReturn:
        raise JnoLoraError(reason)

    trace = sys.modules.get("jno.trace")
    for cls in (getattr(trace, "Model", None), getattr(trace, "ModelCall", None)):
        if hasattr(cls, "lora"):
            setattr(cls, "lora", lora)  # noqa: B010


def _import(name: str) -> ModuleType:
    if jno_version() is None and getattr(sys.modules.get("jno"), "__file__", None) is None:
        raise JnoLoraError(
            "jNO is not installed. Install it with\n    pip install jax-numerical-operators"
        )
    try:
        return importlib.import_module(name)
    except ImportError as err:
        raise JnoLoraError(f"{describe_jno()} has no module {name}: {err}") from err


def _differences(where: str, theirs: object, ours: Callable[..., object]) -> list[str]:
    """Why `ours` cannot take the arguments of `theirs`: at most one reason."""
    if not callable(theirs):
        return [f"{where} is missing"]
    if isinstance(ours, type):
        return [] if isinstance(theirs, type) else [f"{where} is not a class"]
    asked, taken = (inspect.signature(f, follow_wrapped=False).parameters for f in (theirs, ours))
    takes_any = any(p.kind is p.VAR_KEYWORD for p in taken.values())
    named = [name for name, p in asked.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    unknown = [] if takes_any else [name for name in named if name not in taken]
    if unknown:
        return [f"{where} takes {', '.join(unknown)}, which jno.lora does not take"]
    in_order = [name for name, p in asked.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    if in_order != list(taken)[: len(in_order)]:
        return [f"{where} takes {', '.join(in_order)} in this order, jno.lora {', '.join(taken)}"]
    return []


def _swap(replacements: Mapping[int, object]) -> None:
    """Replace objects, found by their identity, in every loaded module of jNO."""
    for name, module in list(sys.modules.items()):
        if not f"{name}.".startswith("jno.") or f"{name}.".startswith("jno.lora."):
            continue
        for attribute, value in list(vars(module).items()):
            if id(value) in replacements:
                setattr(module, attribute, replacements[id(value)])
