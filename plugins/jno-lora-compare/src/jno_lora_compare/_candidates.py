"""The candidates of `compare`: their names, and the adapters that they put into a net."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from jaxtyping import PyTree

from jno.lora import JnoLoraError, LoRAWrapper, Net, Registry, SelectionError
from jno.lora.extending import nearest, statistics_of
from jno_lora_zoo import check_statistics_from, collect_statistics

from ._checks import Loss

Wrapper: TypeAlias = type[LoRAWrapper] | str | Sequence[type[LoRAWrapper] | str]
# A candidate as users write it. A dict has a name, and arguments of `Net.lora`.
Description: TypeAlias = Wrapper | Mapping[str, Any]
Arguments: TypeAlias = Mapping[str, Any]
# Batches and a loss, from which adapters that start from data get their statistics.
Data: TypeAlias = tuple[Iterable[PyTree], Loss]

_KEYS = ("name", "wrapper", "specs", "rank", "alpha", "target", "options", "statistics_from")


class Candidate(NamedTuple):
    """One candidate.

    - `arguments`: of `Net.lora`; `None` for `"full"` and `"none"`, which have no adapters.
    - `data`: its own data for the start of its adapters.
    - `trains_all`: whether the whole model trains (`"full"`).
    """

    name: str
    arguments: Arguments | None
    data: Data | None = None
    trains_all: bool = False


def candidates_of(
    wrappers: Description | Sequence[Description],
    net: Net,
    registry: Registry,
    settings: Arguments,
) -> list[Candidate]:
    """The candidates of `compare`, with `"all"` replaced by the variants that adapt a layer.

    - `settings`: the arguments of `Net.lora` that a candidate may leave out.

    **Raises:** `SelectionError` if there is none, one makes no sense, or two share a name; and the
    error of the first adapter, if no adapter fits the model.
    """
    listed = [wrappers] if isinstance(wrappers, str | type) else list(wrappers)
    if not listed:
        raise SelectionError("`compare` needs at least one candidate in `wrappers`.")
    candidates: list[Candidate] = []
    for description in listed:
        if description == "all":
            variants = [x for x in _variants(net, registry, settings) if x not in listed]
            candidates += [_candidate(variant, settings) for variant in variants]
        else:
            candidates.append(_candidate(description, settings))
    names = [candidate.name for candidate in candidates]
    if twice := [name for name in names if names.count(name) > 1]:
        raise SelectionError(
            f"Two candidates are called {twice[0]!r}. Give each a different `name`, in a dict: "
            '{"name": ..., "wrapper": ...}.'
        )
    _check_that_one_fits(net, candidates)
    return candidates


def _variants(net: Net, registry: Registry, settings: Arguments) -> list[str]:
    """The variants of the registry that adapt a layer of `net`, by family."""
    classes = [wrapper.cls for record in registry.records() for wrapper in record.wrappers]
    families = {cls.variant: cls.about.family or "" for cls in classes if cls.variant}
    by_family = sorted(families, key=lambda variant: (families[variant], variant))
    return [variant for variant in by_family if net.plan(wrapper=variant, **settings).wrapped]


def _candidate(description: Description, settings: Arguments) -> Candidate:
    if isinstance(description, Mapping):
        return _described(description, settings)
    if description in ("full", "none"):
        return Candidate(str(description), None, trains_all=description == "full")
    adapters = description if isinstance(description, list | tuple) else [description]
    if not adapters or not all(map(_names_an_adapter, adapters)):
        raise SelectionError(
            "A candidate is the name, variant or class of an adapter, a list of these, a dict "
            f'of arguments, "full", "none" or "all", but `wrappers` holds {description!r}.'
        )
    return Candidate(_name_of(description), {"wrapper": description, **settings})


def _described(given: Mapping[str, Any], settings: Arguments) -> Candidate:
    """The candidate of a dict."""
    if unknown := [key for key in given if key not in _KEYS]:
        raise SelectionError(
            f"The candidate {dict(given)!r} has an unknown key {unknown[0]!r}; did you mean "
            f"{nearest(str(unknown[0]), _KEYS, n=1)[0]!r}? A candidate has the keys "
            f"{', '.join(_KEYS)}."
        )
    if "wrapper" not in given and "specs" not in given:
        raise SelectionError(
            f"The candidate {dict(given)!r} names no adapter: give it a `wrapper`, or `specs`."
        )
    arguments = {**settings, **given}
    if "specs" in given and "target" not in given:
        del arguments["target"]  # of `compare`; specs have targets
    name = arguments.pop("name", None)
    if name is None:
        shown = [f"{key}={given[key]!r}" for key in ("rank", "alpha", "target") if key in given]
        name = " ".join([_name_of(given.get("wrapper") or "specs"), *shown])
    data = arguments.pop("statistics_from", None)
    return Candidate(str(name), arguments, None if data is None else check_statistics_from(data))


def _names_an_adapter(item: object) -> bool:
    return isinstance(item, str) or (isinstance(item, type) and issubclass(item, LoRAWrapper))


def _name_of(wrapper: Wrapper) -> str:
    if isinstance(wrapper, str):
        return wrapper
    return wrapper.__name__ if isinstance(wrapper, type) else ", ".join(map(_name_of, wrapper))


def _check_that_one_fits(net: Net, candidates: list[Candidate]) -> None:
    errors: list[JnoLoraError] = []
    for candidate in candidates:
        if candidate.arguments is None:
            continue
        try:
            problem = net.plan(**candidate.arguments).problem
        except JnoLoraError as err:
            errors.append(err)
            continue
        if problem is None:
            return
        errors.append(SelectionError(problem))
    if errors:
        raise errors[0]


def adapt(net: Net, candidate: Candidate, data: Data) -> None:
    """Put the candidate's adapters into `net`; `data` is for starts, unless it has its own.

    **Raises:** `SelectionError` if the candidate has its own data, and does not start from data.
    """
    if not candidate.trains_all:
        net.freeze()
    if candidate.arguments is None:
        return
    arguments = dict(candidate.arguments)
    adapters = [row.wrapper for row in net.plan(**arguments).wrapped]
    if any(adapter is not None and statistics_of(adapter) for adapter in adapters):
        selection = {key: arguments.get(key) for key in ("wrapper", "target", "specs")}
        batches, loss = candidate.data or data
        arguments["statistics"] = collect_statistics(net.module, batches, loss, **selection)
    elif candidate.data is not None:
        raise SelectionError(
            "The candidate has `statistics_from`, but none of its adapters starts from data. "
            "Leave `statistics_from` out."
        )
    net.lora(**arguments)
