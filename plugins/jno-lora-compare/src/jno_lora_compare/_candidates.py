"""The candidates of `compare`: which adapters they name, and what they are called."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from jno.lora import JnoLoraError, LoRAWrapper, Net, Registry, SelectionError

Candidate: TypeAlias = type[LoRAWrapper] | str | Sequence[type[LoRAWrapper] | str]

# Everything trains, nothing trains, and one candidate per variant that adapts a layer.
_FULL, _NONE, _ALL = "full", "none", "all"


def check_candidates(candidates: list[Any]) -> None:
    if not candidates:
        raise SelectionError("`compare` needs at least one candidate in `wrappers`.")
    for candidate in candidates:
        adapters = candidate if isinstance(candidate, list | tuple) else [candidate]
        if not adapters or not all(map(_names_an_adapter, adapters)):
            raise SelectionError(
                "A candidate is the name, variant or class of an adapter, a list of these, "
                f'"full", "none" or "all", but `wrappers` holds {candidate!r}.'
            )


def _names_an_adapter(item: Any) -> bool:
    return isinstance(item, str) or (isinstance(item, type) and issubclass(item, LoRAWrapper))


def replace_all(
    candidates: Sequence[Candidate], net: Net, registry: Registry, settings: Mapping[str, Any]
) -> list[Candidate]:
    """The candidates, with `"all"` replaced by the variants that adapt a layer, by family."""
    if _ALL not in candidates:
        return list(candidates)
    classes = [wrapper.cls for record in registry.records() for wrapper in record.wrappers]
    families = {cls.variant: cls.family or "" for cls in classes if cls.variant}
    by_family = sorted(families, key=lambda variant: (families[variant], variant))
    unnamed = [variant for variant in by_family if variant not in candidates]
    added = [variant for variant in unnamed if net.plan(wrapper=variant, **settings).wrapped]
    position = candidates.index(_ALL)
    named = [candidate for candidate in candidates if candidate != _ALL]
    return [*named[:position], *added, *named[position:]]


def check_plans(net: Net, candidates: Sequence[Candidate], settings: Mapping[str, Any]) -> None:
    """**Raises:** the error of the first adapter, if none of the adapters fits the model."""
    errors: list[JnoLoraError] = []
    for candidate in candidates:
        if candidate in (_FULL, _NONE):
            continue
        try:
            plan = net.plan(wrapper=candidate, **settings)
        except JnoLoraError as err:
            errors.append(err)
            continue
        if plan.problem is None:
            return
        errors.append(SelectionError(plan.problem))
    if errors:
        raise errors[0]


def name_of(candidate: Candidate) -> str:
    if isinstance(candidate, str):
        return candidate
    if isinstance(candidate, type):
        return candidate.__name__
    return ", ".join(map(name_of, candidate))


def adapt(net: Net, candidate: Candidate, data: Any, settings: Mapping[str, Any]) -> None:
    """Put the adapters into `net`. Those that start from data are calibrated on `data`."""
    if candidate != _FULL:
        net.freeze()
    if candidate in (_FULL, _NONE):
        return
    rows = net.plan(wrapper=candidate, **settings).wrapped
    starts_from_data = any(row.wrapper is not None and row.wrapper.needs for row in rows)
    net.lora(wrapper=candidate, calibrate=data if starts_from_data else None, **settings)
