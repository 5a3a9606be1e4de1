"""Words of other libraries for arguments: jNO's are taken, and PEFT's raise an error with ours."""

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

from ._errors import SelectionError
from ._paths import nearest

F = TypeVar("F", bound=Callable[..., Any])

_OURS = {
    "r": "rank",
    "lora_alpha": "alpha",
    "target_modules": 'target, a regex that is searched in paths ("q_proj|v_proj"), or a list',
    "layers_to_transform": 'target, such as "layers/[01]/"',
    "rank_pattern": 'specs, such as specs=[{"target": "q_proj", "rank": 4}, {"target": "v_proj"}]',
    "use_dora": 'wrapper="dora"',
    "use_rslora": 'wrapper="rslora"',
    "init_lora_weights": 'wrapper, such as wrapper="pissa"',
    "lora_dropout": 'options={"dropout": ...}',
    "modules_to_save": "net.mask(regex of their paths).unfreeze(), after net.lora",
}


# jNO's words of `apply_lora`.
_JNO = {"wrappers": "wrapper", "param_mask": "mask"}


class UnknownArgumentError(SelectionError, TypeError):
    """A function has no argument of that name. Python itself would raise a `TypeError`."""


def explain_unknown(head: str, unknown: Iterable[Any], arguments: Iterable[str]) -> str:
    """A message about unknown arguments, with our names for PEFT's arguments.

    - `head`: the beginning of its first sentence: "apply_lora() has no".
    - `arguments`: the arguments that exist.
    """
    names, lines = [*arguments], [f"{head} {', '.join(map(repr, unknown))}."]
    for name in unknown:
        if name in _OURS:
            lines.append(f"  - PEFT's {name} is {_OURS[name]}")
        elif near := nearest(str(name), names, n=1):
            lines.append(f"  - {name}: did you mean {near[0]!r}?")
    lines.append(f"It takes {', '.join(names) or 'none'}. docs/peft.md translates PEFT's names.")
    return "\n".join(lines)


def knows_words_of_peft(function: F) -> F:
    """A decorator: the error for an unknown argument includes our name for it."""
    parameters = [name for name in inspect.signature(function).parameters if name != "self"]

    @functools.wraps(function)
    def checked(*args: Any, **arguments: Any) -> Any:
        if unknown := [name for name in arguments if name not in parameters]:
            called = function.__qualname__.replace("Net.", "net.")
            raise UnknownArgumentError(explain_unknown(f"{called}() has no", unknown, parameters))
        return function(*args, **arguments)

    return cast(F, checked)


def knows_words_of_jno(function: F) -> F:
    """A decorator: jNO's `wrappers` and `param_mask` mean `wrapper` and `mask`."""

    @functools.wraps(function)
    def renamed(*args: Any, **arguments: Any) -> Any:
        for theirs, word in _JNO.items():
            if theirs in arguments and word not in arguments:
                arguments[word] = arguments.pop(theirs)
        return function(*args, **arguments)

    return cast(F, renamed)
