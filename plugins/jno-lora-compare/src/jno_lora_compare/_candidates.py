"""The candidates of `compare`: their adapters and their names."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from jno.lora import JnoLoraError, LoRAWrapper, Net, Registry, SelectionError
from jno.lora.extending import nearest, statistics_of
from jno_lora_zoo import check_statistics_from, collect_statistics

Wrapper: TypeAlias = type[LoRAWrapper] | str | Sequence[type[LoRAWrapper] | str]
Candidate: TypeAlias = Wrapper | Mapping[str, Any]

# The keys of a candidate that is a dict: its name, and arguments of `Net.lora`.
_KEYS = ("name", "wrapper", "specs", "rank", "alpha", "target", "options", "statistics_from")

# Everything trains, nothing trains, and one candidate per variant that adapts a layer.
_FULL, _NONE, _ALL = "full", "none", "all"


def check_candidates(candidates: list[Any]) -> None:
    if not candidates:
        raise SelectionError("`compare` needs at least one candidate in `wrappers`.")
    for candidate in candidates:
        adapters = candidate if isinstance(candidate, list | tuple) else [candidate]
        if isinstance(candidate, Mapping):
            _check_keys(candidate)
        elif not adapters or not all(map(_names_an_adapter, adapters)):
            raise SelectionError(
                "A candidate is the name, variant or class of an adapter, a list of these, a dict "
                f'of arguments, "full", "none" or "all", but `wrappers` holds {candidate!r}.'
            )


def check_names(candidates: Sequence[Candidate]) -> None:
    """**Raises:** `SelectionError` if two candidates share a name, since rows are found by name."""
    names = [name_of(candidate) for candidate in candidates]
    if twice := [name for name in names if names.count(name) > 1]:
        raise SelectionError(
            f"Two candidates are called {twice[0]!r}. Give each a different `name`, in a dict: "
            '{"name": ..., "wrapper": ...}.'
        )


def _check_keys(candidate: Mapping[str, Any]) -> None:
    if unknown := [key for key in candidate if key not in _KEYS]:
        raise SelectionError(
            f"The candidate {dict(candidate)!r} has an unknown key {unknown[0]!r}; did you mean "
            f"{nearest(str(unknown[0]), _KEYS, n=1)[0]!r}? A candidate has the keys "
            f"{', '.join(_KEYS)}."
        )
    if "wrapper" not in candidate and "specs" not in candidate:
        raise SelectionError(
            f"The candidate {dict(candidate)!r} names no adapter: give it a `wrapper`, or `specs`."
        )
    if candidate.get("statistics_from") is not None:
        check_statistics_from(candidate["statistics_from"])


def _names_an_adapter(item: Any) -> bool:
    return isinstance(item, str) or (isinstance(item, type) and issubclass(item, LoRAWrapper))


def replace_all(
    candidates: Sequence[Candidate], net: Net, registry: Registry, settings: Mapping[str, Any]
) -> list[Candidate]:
    """The candidates, with `"all"` replaced by the variants that adapt a layer, by family."""
    if _ALL not in candidates:
        return list(candidates)
    classes = [wrapper.cls for record in registry.records() for wrapper in record.wrappers]
    families = {cls.variant: cls.about.family or "" for cls in classes if cls.variant}
    by_family = sorted(families, key=lambda variant: (families[variant], variant))
    unnamed = [variant for variant in by_family if variant not in candidates]
    added = [variant for variant in unnamed if net.plan(wrapper=variant, **settings).wrapped]
    position = candidates.index(_ALL)
    named = [candidate for candidate in candidates if candidate != _ALL]
    return [*named[:position], *added, *named[position:]]


def check_plans(net: Net, candidates: Sequence[Candidate], settings: Mapping[str, Any]) -> None:
    """**Raises:** the error of the first adapter, if no adapter fits the model."""
    errors: list[JnoLoraError] = []
    for candidate in candidates:
        if candidate in (_FULL, _NONE):
            continue
        try:
            plan = net.plan(**_arguments(candidate, settings))
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
    if isinstance(candidate, Mapping):
        keys = [key for key in ("rank", "alpha", "target") if key in candidate]
        shown = (f"{key}={candidate[key]!r}" for key in keys)
        words = " ".join([name_of(candidate.get("wrapper") or "specs"), *shown])
        return str(candidate.get("name", words))
    return ", ".join(map(name_of, candidate))


def _arguments(candidate: Candidate, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `Net.plan` for a candidate, completed by `settings`."""
    if not isinstance(candidate, Mapping):
        return {"wrapper": candidate, **settings}
    left_out = ("name", "statistics_from")
    given = {key: value for key, value in candidate.items() if key not in left_out}
    defaults = {k: v for k, v in settings.items() if k != "target" or "specs" not in given}
    return {**defaults, **given}


def adapt(net: Net, candidate: Candidate, data: Any, settings: Mapping[str, Any]) -> None:
    """Put the adapters into `net`.

    Adapters that start from data get statistics of the candidate's `statistics_from`, or else of
    `data`.

    **Raises:** `SelectionError` if the candidate has `statistics_from`, but does not start from
    data.
    """
    if candidate != _FULL:
        net.freeze()
    if candidate in (_FULL, _NONE):
        return
    arguments = _arguments(candidate, settings)
    adapters = [row.wrapper for row in net.plan(**arguments).wrapped]
    starts_from_data = any(adapter is not None and statistics_of(adapter) for adapter in adapters)
    if isinstance(candidate, Mapping) and candidate.get("statistics_from") is not None:
        data = candidate["statistics_from"]
        if not starts_from_data:
            raise SelectionError(
                "The candidate has `statistics_from`, but none of its adapters starts from data. "
                "Leave `statistics_from` out."
            )
    if starts_from_data:
        selection = {key: arguments.get(key) for key in ("wrapper", "target", "specs")}
        arguments["statistics"] = collect_statistics(net.module, *data, **selection)
    net.lora(**arguments)
