"""Call an adapter's constructor, with `rank` and `alpha` only if it takes them."""

import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
from jaxtyping import PRNGKeyArray

from .._caches import remembered
from .._errors import WrapperError
from ._shared import is_shared, shared_fields


class _Parameters(NamedTuple):
    """The parameters of a constructor after `self` and `base`."""

    scale: tuple[str, ...]  # among "rank" and "alpha"
    by_position: bool  # rank and alpha are the second and third argument, under whatever names
    options: list[str] | None  # the other keywords; `None` if it takes any


@remembered(4096)
def _parameters(cls: Any) -> _Parameters:
    parameters = list(inspect.signature(cls.__init__).parameters.values())
    kinds, behind = {p.kind for p in parameters}, parameters[2:]
    places = [p.name for p in behind if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    keywords = [p.name for p in behind if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    named = tuple(name for name in ("rank", "alpha") if name in keywords)
    takes_two = len(places) >= 2 or inspect.Parameter.VAR_POSITIONAL in kinds
    by_position = takes_two and not {"rank", "alpha"} <= {*places}
    taken = {"key", "statistics", *(places[:2] if by_position else named)}
    takes_any = inspect.Parameter.VAR_KEYWORD in kinds
    options = None if takes_any else [name for name in keywords if name not in taken]
    return _Parameters(("rank", "alpha") if by_position else named, by_position, options)


def construct(
    cls: Any,
    base: Any,
    rank: int | None,
    alpha: float | None,
    *,
    key: PRNGKeyArray,
    options: Mapping[str, Any] = MappingProxyType({}),
    statistics: Mapping[str, Any] | None = None,
) -> Any:
    """The adapter of class `cls` around `base`, which is one layer."""
    args, kwargs = _arguments(cls, rank, alpha, statistics)
    adapter = cls(base, *args, **kwargs, key=key, **options)
    fields = [id(shared) for _, shared in shared_fields(adapter)]
    leaves = jax.tree.leaves(adapter, is_leaf=is_shared)
    if any(is_shared(leaf) and id(leaf) not in fields for leaf in leaves):
        raise WrapperError("a `Shared` must be a field of the adapter itself, or in a dict there")
    return adapter


def _arguments(
    cls: Any, rank: Any, alpha: Any, statistics: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The positional and the keyword arguments after `base`, without key and options."""
    parameters = _parameters(cls)
    kwargs = {"statistics": statistics} if getattr(cls, "needs", ()) else {}
    if parameters.by_position:
        return (rank, alpha), kwargs
    return (), kwargs | {n: rank if n == "rank" else alpha for n in parameters.scale}


def takes(cls: Any) -> tuple[str, ...]:
    """The parameters among `rank` and `alpha` that the constructor of `cls` takes."""
    return _parameters(cls).scale


def option_names(cls: Any) -> list[str] | None:
    """The further keyword arguments of the constructor; `None` if it takes any."""
    return _parameters(cls).options


def constructor_problem(cls: Any) -> str | None:
    """Why the constructor of `cls` cannot be called; else `None`."""
    args, kwargs = _arguments(cls, 4, 1.0, {})
    try:
        inspect.signature(cls.__init__).bind(None, None, *args, **kwargs, key=None)
    except TypeError as err:
        return f"{err}"
    return None
