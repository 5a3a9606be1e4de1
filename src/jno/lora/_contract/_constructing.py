"""The call of an adapter's constructor: with `rank` and `alpha` only if it takes them."""

import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from jaxtyping import PRNGKeyArray

from .._caches import remembered


def construct(
    cls: Any,
    base: Any,
    rank: int | None,
    alpha: float | None,
    *,
    key: PRNGKeyArray,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> Any:
    """The adapter of class `cls` around `base`, which is one layer."""
    args, kwargs = _scale(cls, rank, alpha)
    return cls(base, *args, **kwargs, key=key, **options)


@remembered(4096)
def takes(cls: Any) -> tuple[str, ...]:
    """The parameters among `rank` and `alpha` that the constructor of `cls` takes."""
    named = tuple(name for name in ("rank", "alpha") if name in _keywords(cls))
    return ("rank", "alpha") if _by_position(cls, named) else named


def _by_position(cls: Any, named: tuple[str, ...]) -> bool:
    """Whether rank and alpha are the second and third argument, under whatever names."""
    parameters = _parameters(cls)
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    is_open = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    if len(named) == 2:  # both by name, unless the contract's place is closed to them
        return not {*named} <= {p.name for p in places}
    return is_open or len(places) >= 2


def _parameters(cls: Any) -> list[inspect.Parameter]:
    """The parameters of the constructor behind `self` and `base`."""
    parameters = list(inspect.signature(cls.__init__).parameters.values())
    variable = [p for p in parameters[:2] if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return [*variable, *parameters[2:]]


def _keywords(cls: Any) -> list[str]:
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [p.name for p in _parameters(cls) if p.kind in kinds]


def constructor_problem(cls: Any) -> str | None:
    """Why the constructor of `cls` cannot be called, if so."""
    args, kwargs = _scale(cls, 4, 1.0)
    try:
        inspect.signature(cls.__init__).bind(None, None, *args, **kwargs, key=None)
    except TypeError as err:
        return f"{err}"
    return None


@remembered(4096)
def option_names(cls: Any) -> list[str] | None:
    """The further keyword arguments of the constructor; `None` if it takes any."""
    if any(p.kind is p.VAR_KEYWORD for p in _parameters(cls)):
        return None
    args, kwargs = _scale(cls, None, None)
    places = [p.name for p in _parameters(cls) if p.kind is not p.KEYWORD_ONLY]
    taken = {"key", *kwargs, *places[: len(args)]}
    return [name for name in _keywords(cls) if name not in taken]


def _scale(cls: Any, rank: Any, alpha: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The positional and keyword arguments for what `cls` takes of `rank` and `alpha`."""
    named = [name for name in ("rank", "alpha") if name in _keywords(cls)]
    if _by_position(cls, tuple(named)):
        return (rank, alpha), {}
    return (), {name: rank if name == "rank" else alpha for name in named}
