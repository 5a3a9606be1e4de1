"""Mistakes in an adapter class, found before anything is built with it."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from .._caches import remembered
from .._errors import WrapperError
from .._paths import bullets
from ._constructing import constructor_problem, takes
from ._statistics import namesakes, need_mistake, statistics_of
from ._updates import Updates
from ._variants import variant_problem
from ._wrapper import LoRAWrapper

_MEMBERS = [*vars(Updates).items(), *vars(LoRAWrapper).items()]
_CLASSMETHODS = [name for name, member in _MEMBERS if isinstance(member, classmethod)]
_REFUSES = ": with `mergeable = False`, it raises a `WrapperError` that says why"


def contract_problems(cls: Any) -> tuple[str, ...]:
    """Everything that keeps `cls` from being a usable adapter class."""
    if not (isinstance(cls, type) and issubclass(cls, LoRAWrapper)):
        return (f"{cls!r} is not a subclass of jno.lora.LoRAWrapper",)
    return _class_problems(cls)


@remembered(4096)
def _class_problems(cls: type[LoRAWrapper]) -> tuple[str, ...]:
    missing = sorted(cls.__abstractmethods__ | cls.__abstractvars__ | cls.__abstractclassvars__)
    if missing:
        hints = {} if cls.mergeable is not False else {"merge": _REFUSES}
        return tuple(f"`{name}` is not defined{hints.get(name, '')}" for name in missing)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    return (
        *_field_mistakes(cls, fields),
        *_side_mistakes(cls, fields),
        *_rank_mistakes(cls),
        *_needs_mistakes(cls),
        *_constructor_mistakes(cls, fields),
        *_attribute_mistakes(cls),
    )


def _trained(cls: type[LoRAWrapper]) -> tuple[str, ...]:
    """The `adapter_fields`, or none if they are not a tuple of names."""
    return cls.adapter_fields if _are_names(cls.adapter_fields) else ()


def _are_names(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(name, str) for name in value)


def _field_mistakes(cls: type[LoRAWrapper], fields: Mapping[str, Any]) -> Iterator[str]:
    optional: Any = cls.optional_fields
    if not _are_names(optional):
        yield f"`optional_fields` must be a tuple of field names, but is {optional!r}"
        optional = ()
    trained = {"adapter_fields": _trained(cls), "optional_fields": optional}
    if not trained["adapter_fields"]:
        yield (
            "`adapter_fields` must be a non-empty tuple of field names, such as "
            f'`("lora_A",)` (mind the comma), but is {cls.adapter_fields!r}'
        )
    for attribute, names in trained.items():
        for name in names:
            if name not in fields:
                shown = ", ".join(n for n in fields if n not in ("base", "rank", "alpha"))
                yield f"`{attribute}` names {name!r}, which is not a field (fields: {shown or '-'})"
            elif fields[name].metadata.get("static", False):
                yield f"`{attribute}` names {name!r}, which is static: it cannot train"
    if "base" in trained["adapter_fields"]:
        yield "`adapter_fields` names 'base', which must stay frozen"
    if "base" not in fields:
        yield "`base` must be a field (`base: eqx.Module`)"


def _constructor_mistakes(cls: type[LoRAWrapper], fields: Mapping[str, Any]) -> Iterator[str]:
    for name, declared in (("rank", "rank: int"), ("alpha", "alpha: float")):
        if name in takes(cls) and name not in fields and not hasattr(cls, name):
            yield (
                f"`{name}` is not defined, but `__init__` takes it: keep it, as in `{declared} = "
                "eqx.field(static=True)`, so that a file can restore the adapter; or do not take it"
            )
    problem = constructor_problem(cls)
    if problem is not None:
        yield (
            "`__init__` must accept `(self, base, rank, alpha, *, key)`, or "
            "`(self, base, *, key)` if it has no use for them, and `statistics=` if the class has "
            f"`needs`: {problem}"
        )


def _attribute_mistakes(cls: type[LoRAWrapper]) -> Iterator[str]:
    for name in _CLASSMETHODS:
        if not isinstance(_defined(cls, name), classmethod | staticmethod):
            yield f"`{name}` must be a classmethod"
    for name in ("auto", "mergeable"):
        if not isinstance(getattr(cls, name), bool):
            yield f"`{name}` must be True or False, but is {getattr(cls, name)!r}"
    if ":" in cls.__name__:
        yield f'its name must hold no ":", but is {cls.__name__!r}'
    # Read here, where a plugin is loaded: an error in a variant would hurt every later call.
    if problem := variant_problem(cls.variant):
        yield f"`variant` {problem}, but is {cls.variant!r}"
    for name in ("family", "cost", "paper", "formula", "bibtex"):
        value = _defined(cls, name)
        if hasattr(type(value), "__get__"):  # reads it when somebody asks
            continue
        if not (value is None or (isinstance(value, str) and value)):
            yield f"`{name}` must be a text that is not empty, or None, but is {value!r}"


def _defined(cls: type, name: str) -> Any:
    """The attribute as a class defines it. `inspect.getattr_static` takes ten times as long."""
    return next((vars(base)[name] for base in cls.__mro__ if name in vars(base)), None)


def _needs_mistakes(cls: type[LoRAWrapper]) -> Iterator[str]:
    needs: Any = cls.needs
    if not isinstance(needs, tuple):
        yield (
            '`needs` must be a tuple of names of statistics, such as `("gradient",)`, but is '
            f"{needs!r}"
        )
        return
    mistakes = [mistake for need in needs if (mistake := need_mistake(need)) is not None]
    yield from mistakes
    if not mistakes and (pair := namesakes(statistics_of(cls))):
        yield f"`needs` lists {pair}. The constructor gets them by name, so rename one of them"
    if needs and cls.matrix.__func__ is LoRAWrapper.matrix.__func__:  # pyright: ignore[reportFunctionMemberAccess]
        yield "`needs` is given, so `matrix` must say which matrix the statistics belong to"


def _rank_mistakes(cls: type[LoRAWrapper]) -> Iterator[str]:
    gate, axes, trained = cls.rank_gate, cls.rank_axes, _trained(cls)
    if gate is not None and gate not in trained:
        yield f"`rank_gate` must be one of the `adapter_fields`, or None, but is {gate!r}"
    if not isinstance(axes, Mapping):
        yield (
            "`rank_axes` must map fields to axes, such as `{'lora_A': 0, 'lora_B': 1}`, but is "
            f"{axes!r}"
        )
        return
    for name, axis in axes.items():
        if name not in trained or name == gate:
            yield f"`rank_axes` names {name!r}, which is not among the other `adapter_fields`"
        if type(axis) is not int or axis < 0:
            yield (
                f"`rank_axes` must give {name!r} an axis of one layer's array, counted from 0, but "
                f"gives {axis!r}"
            )


def _side_mistakes(cls: type[LoRAWrapper], fields: Mapping[str, Any]) -> Iterator[str]:
    sides: Any = cls.factor_sides
    if not isinstance(sides, Mapping) or not all(
        isinstance(name, str) and side in ("input", "output") for name, side in sides.items()
    ):
        yield (
            "`factor_sides` must map names of fields to 'input' or 'output', such as "
            f"{LoRAWrapper.factor_sides}, but is {sides!r}"
        )
    elif sides is not LoRAWrapper.factor_sides:
        for name in sides:
            if name not in fields or fields[name].metadata.get("static", False):
                yield f"`factor_sides` names {name!r}, which is not a field of arrays"


def check_contract(cls: Any) -> None:
    """**Raises:** `WrapperError` that lists every mistake in the adapter class `cls`."""
    problems = contract_problems(cls)
    if problems:
        name = getattr(cls, "__qualname__", repr(cls))
        raise WrapperError(
            f"{name} is not a usable adapter class:\n{bullets(problems)}\n"
            "See `jno.lora.LoRAWrapper` for how an adapter is written; `jno-lora new` writes one."
        )
