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
    parameters = inspect.signature(cls.__init__).parameters
    named = tuple(name for name in ("rank", "alpha") if name in parameters)
    # They may have other names, or be handed on to another constructor.
    several = [p for p in parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    is_open = any(p.kind is p.VAR_POSITIONAL for p in parameters.values())
    is_open = is_open or sum(p.default is p.empty for p in several) > 2
    return named or (("rank", "alpha") if is_open else ())


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
    _, *parameters = inspect.signature(cls.__init__).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    args, kwargs = _scale(cls, None, None)
    keywords = [p for p in parameters[1 + len(args) :] if p.kind is not p.VAR_POSITIONAL]
    return [p.name for p in keywords if p.name not in kwargs and p.name != "key"]


def _scale(cls: Any, rank: Any, alpha: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The positional and keyword arguments for what `cls` takes of `rank` and `alpha`."""
    names = takes(cls)
    if len(names) == 2:
        return (rank, alpha), {}
    return (), {name: rank if name == "rank" else alpha for name in names}
