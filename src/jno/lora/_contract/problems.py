"""Mistakes in an adapter class, found before anything is built with it."""

import dataclasses
import functools
import re
from collections import ChainMap
from collections.abc import Iterator, Mapping
from typing import Any

from .._caches import on_forget
from .._errors import WrapperError
from .._paths import bullets
from .constructing import constructor_problem, takes
from .matrix_adapter import Composite, MatrixAdapter
from .statistics import BUILT_IN, Statistic
from .wrapper import About, LoRAWrapper, overrides

# Words with a special meaning in `wrapper=`, `target=` or `compare`, normalised.
RESERVED_WORDS = ("auto", "all", "none", "alllinear")

_MEMBERS = [*vars(LoRAWrapper).items(), *vars(MatrixAdapter).items()]
_OF_MATRICES = {name for name in vars(MatrixAdapter) if name[0] != "_"} - vars(LoRAWrapper).keys()
_CLASSMETHODS = [name for name, member in _MEMBERS if isinstance(member, classmethod)]


def normalise_word(name: str) -> str:
    """A variant for comparison, without case, dashes and underscores: "lorafa" for "LoRA-FA"."""
    return re.sub(r"[-_ ]", "", name).lower()


def contract_problems(cls: object) -> tuple[str, ...]:
    """Everything that keeps `cls` from being a usable adapter class."""
    if not (isinstance(cls, type) and issubclass(cls, LoRAWrapper)):
        return (f"{cls!r} is not a subclass of jno.lora.LoRAWrapper",)
    return _class_problems(cls)


@functools.lru_cache(4096)
def _class_problems(cls: type[LoRAWrapper]) -> tuple[str, ...]:
    missing = sorted(cls.__abstractmethods__ | cls.__abstractvars__ | cls.__abstractclassvars__)
    if missing:
        return tuple(f"`{name}` is not defined" for name in missing)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    return (
        *_field_mistakes(cls, fields),
        *(() if issubclass(cls, Composite) else _constructor_mistakes(cls, fields)),
        *_attribute_mistakes(cls),
        *_needs_mistakes(cls),
    )


on_forget(_class_problems.cache_clear)


def _field_mistakes(cls: type[LoRAWrapper], fields: Mapping[str, Any]) -> Iterator[str]:
    trained: Any = cls.adapter_fields
    if not (trained and isinstance(trained, tuple) and all(isinstance(n, str) for n in trained)):
        yield (
            "`adapter_fields` must be a non-empty tuple of field names, such as "
            f'`("lora_A",)` (mind the comma), but is {trained!r}'
        )
        trained = ()
    members = {"adapter_fields": trained}
    members |= {m: getattr(cls, m, ()) for m in ("optional_fields", "rank_axes", "factor_sides")}
    arrays = [name for name, field in fields.items() if not field.metadata.get("static", False)]
    for member, names in members.items():
        # The default names fields that only some classes have.
        for name in names if names is not MatrixAdapter.factor_sides else ():
            if name not in fields:
                yield f"`{member}` names {name!r}, which is not a field with arrays: {arrays}"
            elif name not in arrays:
                yield f"`{member}` names {name!r}, which is static: it cannot train"
    if "base" in trained:
        yield "`adapter_fields` names 'base', which must stay frozen"
    if "base" not in fields:
        yield "`base` must be a field (`base: eqx.Module`)"


def _constructor_mistakes(cls: type[LoRAWrapper], fields: Mapping[str, Any]) -> Iterator[str]:
    for name in takes(cls):
        if name not in fields and not hasattr(cls, name):
            yield (
                f"`{name}` is not defined, but `__init__` takes it. Keep it in a static field, "
                "so that a file can restore the adapter, or do not take it"
            )
    if problem := constructor_problem(cls):
        yield (
            "`__init__` must accept `(self, base, rank, alpha, *, key)`, or "
            "`(self, base, *, key)` if it has no use for them, and `statistics=` if the class has "
            f"`needs`: {problem}"
        )


def _attribute_mistakes(cls: type[LoRAWrapper]) -> Iterator[str]:
    members = ChainMap(*map(vars, cls.__mro__))  # pyright: ignore[reportArgumentType]
    for name in _CLASSMETHODS:
        if not isinstance(members.get(name), classmethod | staticmethod | None):
            yield f"`{name}` must be a classmethod"
    if not issubclass(cls, MatrixAdapter):
        for name in sorted(_OF_MATRICES & {name for base in cls.__mro__ for name in vars(base)}):
            yield f"`{name}` is only read in a subclass of jno.lora.MatrixAdapter"
    for name in ("auto", "mergeable"):
        if not isinstance(getattr(cls, name), bool):
            yield f"`{name}` must be True or False, but is {getattr(cls, name)!r}"
    # Checked while a plugin is loaded, because a bad variant would break every later call.
    variant: Any = cls.variant
    is_word = isinstance(variant, str) and normalise_word(variant) not in ("", *RESERVED_WORDS)
    if variant is not None and not (is_word and ":" not in variant):
        yield (
            '`variant` must be a word without ":" (but not `auto`, `all`, `none` or `all-linear`), '
            f"or None, but is {variant!r}"
        )
    facts = vars(cls.about).values() if isinstance(cls.about, About) else [...]
    if not all(isinstance(fact, str | None) for fact in facts):
        yield f"`about` must be a jno.lora.About of texts, but is {cls.about!r}"


def _needs_mistakes(cls: type[LoRAWrapper]) -> Iterator[str]:
    needs = getattr(cls, "needs", ())
    if not isinstance(needs, tuple) or not all(map(_is_statistic, needs)):
        yield (
            f"`needs` must be a tuple, but is {needs!r}, or an item of it is neither one of "
            f"{', '.join(BUILT_IN)} nor a subclass of jno.lora.Statistic with a name"
        )
    elif needs and not overrides(cls, MatrixAdapter, "matrix"):
        yield "`needs` is given, so `matrix` must say which matrix the statistics belong to"


def _is_statistic(need: object) -> bool:
    is_class = isinstance(need, type) and issubclass(need, Statistic)
    return hasattr(need, "name") if is_class else need in BUILT_IN


def check_contract(cls: object) -> None:
    """**Raises:** `WrapperError` that lists every mistake in the adapter class `cls`."""
    problems = contract_problems(cls)
    if problems:
        name = getattr(cls, "__qualname__", repr(cls))
        raise WrapperError(
            f"{name} is not a usable adapter class:\n{bullets(problems)}\n"
            "See `jno.lora.LoRAWrapper` for how an adapter is written; `jno-lora new` writes one."
        )
