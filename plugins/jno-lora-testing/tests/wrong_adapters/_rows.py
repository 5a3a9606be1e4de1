"""The rows of the table: a wrong adapter, its cases, and the check that must notice the fault."""

import dataclasses
import functools
import inspect
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from tests.core.data_adapters import Tied
from tests.core.gated_adapters import Gated

from jno_lora_testing import WrapperCase, standard_cases
from jno_lora_zoo import LoRALinear

from . import _bases as bases

# Correct adapters, whose subclasses are tried on their standard cases: with the law, and with the
# number of parameters of a matrix of this shape and rank.
LAWS: dict[type, tuple[Callable[..., Any], Callable[..., int]]] = {
    Gated: (bases.gated_law, lambda outs, ins, rank: rank * (outs + ins + 1)),
    Tied: (bases.tied_law, lambda outs, ins, rank: rank * (outs + ins)),
    bases.Magnitude: (bases.magnitude_law, lambda outs, ins, rank: rank * (outs + ins) + outs),
    bases.Frozen: (bases.frozen_law, lambda outs, ins, rank: rank * (outs + ins)),
    bases.ConvLoRA: (bases.conv_law, lambda outs, ins, rank: rank * (outs + ins)),
    bases.EmbeddingLoRA: (bases.lora_law, lambda outs, ins, rank: rank * (outs + ins)),
    bases.AttentionLoRA: (bases.attention_law, lambda outs, ins, rank: rank * (outs + ins)),
    LoRALinear: (bases.lora_law, lambda outs, ins, rank: rank * (outs + ins)),
    bases.Good: (bases.lora_law, lambda outs, ins, rank: rank * (outs + ins)),
}


@dataclasses.dataclass(frozen=True)
class Wrong:
    """A wrong adapter with one fault, which its name says.

    - `noticed_by`: the check that must fail; `None` if no check does.
    - `survives`: then, or if the check is advice, why no required check notices the fault.
    - `also`: a required check that must fail too, if the check is advice.
    - `says`: what the message must contain, as a regular expression.
    - `changes`: of the cases, such as options.
    """

    adapter: type
    noticed_by: str | None
    survives: str = ""
    says: str = ""
    also: str = ""
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def family(self) -> str:
        package, _, module = self.adapter.__module__.rpartition(".")
        return module if package == __package__ else "claims"

    def cases(self) -> list[WrapperCase]:
        """The cases that an author writes: the standard cases, with a law and a count."""
        return [dataclasses.replace(case, **self.changes) for case in cases_of(self.adapter)]

    def __str__(self) -> str:
        return self.adapter.__name__


TABLE: list[Wrong] = []


def wrong(
    noticed_by: str | None, *, survives: str = "", says: str = "", also: str = "", **changes: Any
) -> Callable[[type], type]:
    def register(adapter: type) -> type:
        TABLE.append(Wrong(adapter, noticed_by, survives, says, also, changes))
        return adapter

    return register


@dataclasses.dataclass(frozen=True)
class Field:
    """A further field of an adapter; `value(adapter, base, key)` is its first value."""

    value: Callable[..., Any]
    trains: bool = False
    is_static: bool = False


def trained(value: Callable[..., Any]) -> Field:
    return Field(value, trains=True)


def static(value: Callable[..., Any]) -> Field:
    return Field(value, is_static=True)


def changed(
    noticed_by: str | None,
    name: str,
    base: Any = bases.LoRA,
    *,
    survives: str = "",
    says: str = "",
    also: str = "",
    case: Mapping[str, Any] | None = None,
    **members: Any,
) -> type:
    """Put a subclass of a correct adapter into the table, with the changed members alone.

    A `Field` is set after the base's constructor, also if the base has the field. A function that
    replaces a classmethod becomes a classmethod. `case`: changes of the cases.
    """
    fields = {key: value for key, value in members.items() if isinstance(value, Field)}
    namespace: dict[str, Any] = {"__module__": sys._getframe(1).f_globals["__name__"]}
    for key in members.keys() - fields.keys():
        if isinstance(members[key], types.FunctionType):
            members[key].__name__ = key  # which messages show
        is_classmethod = isinstance(inspect.getattr_static(base, key, None), classmethod)
        namespace[key] = classmethod(members[key]) if is_classmethod else members[key]
    if fields:
        namespace["__annotations__"] = dict.fromkeys(fields, Any)
        namespace["__init__"] = _constructor(base, fields)
    for key, field in fields.items():
        if field.is_static:
            namespace[key] = eqx.field(static=True)
        if field.trains:
            namespace["adapter_fields"] = (*base.adapter_fields, key)
    adapter = type(base)(name, (base,), namespace)
    return wrong(noticed_by, survives=survives, says=says, also=also, **(case or {}))(adapter)


def noticed_by(check: str) -> Callable[..., type]:
    """`changed` for this check."""
    return functools.partial(changed, check)


def _constructor(base: Any, fields: dict[str, Field]) -> Callable[..., None]:
    @functools.wraps(base.__init__)
    def constructor(self: Any, layer: Any, *args: Any, key: Any, **options: Any) -> None:
        base.__init__(self, layer, *args, key=key, **options)
        for name, field in fields.items():
            object.__setattr__(self, name, field.value(self, layer, key))

    return constructor


def cases_of(adapter: Any) -> list[WrapperCase]:
    """The cases of an adapter, by the correct adapter from which it is derived."""
    if issubclass(adapter, bases.ComplexLoRA):
        return [complex_case(adapter)]
    base = next(base for base in LAWS if issubclass(adapter, base))
    law, count = LAWS[base]
    cases: list[WrapperCase] = []
    standard = standard_cases(base)
    for case in standard:
        layer = case.make_base()
        W = layer.weight if base in (Gated, Tied, bases.Good) else base.matrix(layer)
        settings: dict[str, Any] = {
            "name": str(case).replace(base.__name__, adapter.__name__),
            "mergeable": adapter.mergeable is not False,
            "parameters": count(*W.shape, case.rank),
        }
        cases.append(dataclasses.replace(case, wrapper=adapter, law=of_adapter(law), **settings))
    claims = inspect.getattr_static(adapter, "applies_to")
    if claims is not inspect.getattr_static(base, "applies_to"):  # perhaps of further layers
        kinds = {type(case.make_base()) for case in standard}
        cases += [case for case in standard_cases(adapter) if type(case.make_base()) not in kinds]
    return cases


def of_adapter(law: Callable[..., Any]) -> Callable[[Any], Any]:
    return lambda adapter: law(adapter, adapter.rank, adapter.alpha)


def complex_case(adapter: Any) -> WrapperCase:
    """A case with a complex layer, which is not a standard layer."""

    def layer(key: Any) -> eqx.Module:
        return bases.ComplexLinear(jax.random.normal(key, (4, 6), jnp.complex64))

    def inputs(key: Any) -> tuple[Any, ...]:
        return (jax.random.normal(key, (6,)),)

    return WrapperCase(adapter, layer, inputs, law=of_adapter(bases.lora_law), parameters=20)
