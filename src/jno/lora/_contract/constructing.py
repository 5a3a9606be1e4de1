"""Call an adapter's constructor, with `rank` and `alpha` only if it takes them."""

import functools
import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
from jaxtyping import PRNGKeyArray, PyTree

from .._caches import on_forget
from .._errors import WrapperError
from .shared import is_shared, shared_fields


class _Parameters(NamedTuple):
    """The parameters of a constructor after `base`."""

    scale: tuple[str, ...]  # among "rank" and "alpha"
    options: list[str] | None  # the other keywords; `None` if it takes any


@functools.lru_cache(4096)
def _parameters(cls: type) -> _Parameters:
    parameters = list(inspect.signature(cls.__init__).parameters.values())[2:]
    keywords = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    scale = tuple(name for name in ("rank", "alpha") if name in keywords)
    options = [name for name in keywords if name not in ("key", "statistics", *scale)]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    return _Parameters(scale, None if takes_any else options)


on_forget(_parameters.cache_clear)


def construct(
    cls: type,
    base: PyTree,
    rank: int | None,
    alpha: float | None,
    *,
    key: PRNGKeyArray,
    options: Mapping[str, Any] = MappingProxyType({}),
    statistics: Mapping[str, Any] | None = None,
) -> Any:
    """The adapter of class `cls` around `base`, which is one layer."""
    adapter = cls(base, **_arguments(cls, rank, alpha, statistics), key=key, **options)
    fields = [id(shared) for _, shared in shared_fields(adapter)]
    leaves = jax.tree.leaves(adapter, is_leaf=is_shared)
    if any(is_shared(leaf) and id(leaf) not in fields for leaf in leaves):
        raise WrapperError("a `Shared` must be a field of the adapter itself, or in a dict there")
    return adapter


def _arguments(cls: type, rank: Any, alpha: Any, statistics: PyTree) -> dict[str, Any]:
    """The arguments after `base`, without key and options."""
    given = {"rank": rank, "alpha": alpha}
    arguments = {name: given[name] for name in _parameters(cls).scale}
    return {**arguments, "statistics": statistics} if getattr(cls, "needs", ()) else arguments


def takes(cls: type) -> tuple[str, ...]:
    """The parameters among `rank` and `alpha` that the constructor of `cls` takes."""
    return _parameters(cls).scale


def option_names(cls: type) -> list[str] | None:
    """The further keyword arguments of the constructor; `None` if it takes any."""
    return _parameters(cls).options


def constructor_problem(cls: type) -> str | None:
    """Why the constructor of `cls` cannot be called; else `None`."""
    try:
        inspect.signature(cls.__init__).bind(None, None, **_arguments(cls, 4, 1.0, {}), key=None)
    except TypeError as err:
        return f"{err}"
    return None
