"""`jno-lora check`: the conformance kit without pytest."""

import dataclasses
import importlib

from .._contract import LoRAWrapper
from .._errors import PluginError, SelectionError, WrapperError
from .._registry import normalise, why_unusable
from .._showing import Table, table
from ..testing import CheckResult, run_checks, standard_cases, standard_layers
from ._cli import records


def find_wrappers(what: str) -> list[type[LoRAWrapper]]:
    """The classes that `MODULE:CLASS`, or the name of a distribution, stands for."""
    module, colon, name = what.partition(":")
    if not colon:
        return _wrappers_of_distribution(what)
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as err:
        raise PluginError(
            f"{what!r} cannot be imported: {err}. Give the module's import path and a name in it, "
            "such as my_package.adapters:MyAdapter, and run this where the module can be imported."
        ) from err
    if not (isinstance(found, type) and issubclass(found, LoRAWrapper)):
        raise PluginError(f"{what!r} is {found!r}, not a subclass of jno.lora.LoRAWrapper.")
    return [found]


def _wrappers_of_distribution(distribution: str) -> list[type[LoRAWrapper]]:
    own = [it for it in records() if it.distribution == normalise(distribution)]
    if not own:
        known = ", ".join(dict.fromkeys(it.distribution for it in records())) or "none"
        raise PluginError(
            f"No installed plugin belongs to a distribution {distribution!r} (installed: {known}). "
            "To check a class, give MODULE:CLASS."
        )
    for record in own:
        if not record.usable:
            raise PluginError(f"The plugin {why_unusable(record)}") from record.error
    wrappers = [wrapper.cls for record in own for wrapper in record.wrappers]
    if not wrappers:
        raise PluginError(f"The plugins of {distribution!r} provide no adapters to check.")
    return wrappers


def run(
    wrappers: list[type[LoRAWrapper]],
    only: tuple[str, ...],
    layers: tuple[str, ...],
    rank: int | None,
) -> tuple[list[CheckResult], str]:
    """Run checks on the common Equinox layers that the classes claim: on all, or on `layers`.

    Also returns a sentence about classes that claim no such layer. It is an error if all do so.
    """
    unknown_layers = {*layers} - standard_layers().keys()
    if unknown_layers:
        raise SelectionError(
            f"{sorted(unknown_layers)} are not layers that this command knows. "
            f"Layers: {', '.join(standard_layers())}."
        )
    cases = {wrapper: standard_cases(wrapper, layers) for wrapper in wrappers}
    unknown = [wrapper.__name__ for wrapper, own in cases.items() if not own]
    left_out = (
        f"Not checked, for they claim no {' or '.join(layers) or 'layer that this command knows'}: "
        f"{', '.join(unknown)}. "
        "For another layer, write a test with `jno.lora.testing.WrapperCase` and "
        '`parametrize_with_checks`: see docs/extending.md, "Keep the promises".'
    )
    if len(unknown) == len(wrappers):
        raise WrapperError(left_out)
    chosen = [case for own in cases.values() for case in own]
    if rank is not None:
        chosen = [dataclasses.replace(case, rank=rank) for case in chosen]
    results = [result for case in chosen for result in run_checks(case, only)]
    return results, left_out if unknown else ""


def as_table(results: list[CheckResult], left_out: str) -> Table:
    """One line per case, and the sentence that `run` returns."""
    outcomes = ("passed", "failed", "advice", "not applicable")
    cases = {result.case: {outcome: list[str]() for outcome in outcomes} for result in results}
    for result in results:
        outcome = "passed" if result.not_applicable is None else "not applicable"
        if result.error is not None:
            outcome = "failed" if result.level == "required" else "advice"
        cases[result.case][outcome].append(result.check)
    total = {name: sum(len(found[name]) for found in cases.values()) for name in outcomes}
    tried = len(results) - total["not applicable"]
    title = f"{total['failed']} of {tried} checks {'fails' if total['failed'] == 1 else 'fail'}"
    rows = (
        (
            case,
            f"{len(found['passed'])}/{sum(len(found[name]) for name in outcomes[:3])}",
            *(", ".join(found[name]) or "-" for name in outcomes[1:]),
        )
        for case, found in cases.items()
    )
    return table(
        f"{title}, {total['advice']} advise" if total["advice"] else title,
        [("case", "left"), ("passed", "right"), *((name, "left") for name in outcomes[1:])],
        rows,
        caption=left_out,
    )
