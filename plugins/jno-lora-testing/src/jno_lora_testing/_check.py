"""`jno-lora check`: the conformance kit without pytest."""

import collections
import dataclasses
import json
import pkgutil
import re
import textwrap
from collections.abc import Sequence
from typing import Any

import importlib_metadata
from jaxtyping import PyTree
from packaging.utils import canonicalize_name

from jno.lora import (
    LoRAWrapper,
    PluginError,
    PluginRecord,
    SelectionError,
    Table,
    WrapperError,
    __version__,
)
from jno.lora.extending import Composite, table, why_unusable

from ._case import WrapperCase
from ._causes import CAUSES
from ._run import CheckResult, causes_of, run_checks
from ._standard_cases import standard_cases, standard_layers
from ._tiers import TIERS, sentence, tier_of, why_below


def imported(what: str) -> PyTree:
    """Import the object called MODULE:NAME.

    **Raises:** `PluginError` if it cannot be imported.
    """
    try:
        return pkgutil.resolve_name(what)
    except (ImportError, AttributeError, ValueError) as err:
        raise PluginError(
            f"{what!r} cannot be imported: {err}. Give the module's import path and a name in it, "
            "such as my_package.adapters:MyAdapter, and run this where the module can be imported."
        ) from err


def is_adapter_class(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, LoRAWrapper)


def cases_in(what: str, value: object) -> list[WrapperCase]:
    """The cases in `value`: a case, a list of cases, or a function that returns cases.

    **Raises:** `PluginError` for any other value, and for two cases with the same name.
    """
    try:
        result: Any = value() if callable(value) and not isinstance(value, type) else value
    except Exception as err:  # a function with arguments is no list of cases either
        result = err
    cases = [result] if isinstance(result, WrapperCase) else result
    is_listed = isinstance(cases, Sequence) and all(isinstance(c, WrapperCase) for c in cases)
    if not (is_listed and cases):
        raise PluginError(
            f"{what!r} gives {result!r}. It must be a subclass of jno.lora.LoRAWrapper, a list of "
            "jno_lora_testing.WrapperCase, or a function without arguments that returns such a "
            "list."
        )
    names = collections.Counter(map(str, cases))
    if repeated := [name for name, count in names.items() if count > 1]:
        raise PluginError(
            f"{what!r} has several cases called {', '.join(repeated)}: give each case a `name`."
        )
    return list(cases)


def cases_of(
    distribution: str, records: tuple[PluginRecord, ...], layers: tuple[str, ...]
) -> tuple[list[WrapperCase], str]:
    """The cases that the plugins of a distribution name, and common cases of other adapters.

    A plugin names its cases as MODULE:CASES, in `jno_lora_cases` of its module; with `layers`, they
    are left out. Also returns a sentence about adapters without a case, or about none at all.
    """
    name = canonicalize_name(distribution)
    plugins = [record for record in records if record.distribution == name]
    if not plugins:
        names = ", ".join(dict.fromkeys(record.distribution for record in records)) or "none"
        raise PluginError(
            f"No installed plugin belongs to a distribution {distribution!r} (installed: {names}). "
            "`jno-lora doctor` shows why a distribution is not found. To check a class, "
            "give MODULE:CLASS."
        )
    for record in plugins:
        if record.status != "loaded":
            raise PluginError(f"The plugin {why_unusable(record)}") from record.error
    named = [getattr(record.plugin, "jno_lora_cases", None) for record in plugins]
    wanted = [] if layers else [what for what in named if what]
    cases = [case for what in wanted for case in cases_in(what, imported(what))]
    covered = {case.wrapper for case in cases}
    classes = (wrapper.cls for record in plugins for wrapper in record.wrappers)
    # `lora` does not make composites, so the kit cannot build them.
    wrappers = [cls for cls in classes if not issubclass(cls, Composite)]
    if not wrappers:
        return [], f"{distribution} loads, and has no adapters to check."
    if not (further := [wrapper for wrapper in wrappers if wrapper not in covered]):
        return cases, ""
    if cases and not any(standard_cases(wrapper, layers) for wrapper in further):
        names = ", ".join(wrapper.__name__ for wrapper in further)
        return cases, f"Not checked, because `jno_lora_cases` has no case of them: {names}."
    common, unchecked = common_cases(further, layers)
    return [*cases, *common], unchecked


def common_cases(
    wrappers: list[type[LoRAWrapper]], layers: tuple[str, ...]
) -> tuple[list[WrapperCase], str]:
    """Cases for the common Equinox layers that the classes claim, or for those in `layers`.

    Also returns a sentence about classes that claim no such layer, empty if all claim one.

    **Raises:** `SelectionError` for an unknown layer; `WrapperError` if no class claims a layer.
    """
    if unknown_layers := {*layers} - standard_layers().keys():
        raise SelectionError(
            f"{sorted(unknown_layers)} are not layers that this command knows. "
            f"Layers: {', '.join(standard_layers())}."
        )
    cases = {wrapper: standard_cases(wrapper, layers) for wrapper in wrappers}
    unchecked = [wrapper.__name__ for wrapper in wrappers if not cases[wrapper]]
    sentence = (
        "Not checked, because they claim no "
        f"{' or '.join(layers) or 'layer that this command knows'}: {', '.join(unchecked)}. "
        "For another layer, write cases with `jno_lora_testing.WrapperCase`, and give their list: "
        'MODULE:CASES. See docs/own-adapter.md, "Check it".'
    )
    if len(unchecked) == len(wrappers):
        raise WrapperError(sentence)
    listed = [case for wrapper in wrappers for case in cases[wrapper]]
    return listed, sentence if unchecked else ""


def overstated(distribution: str, tier: str | None) -> str:
    """A sentence if the keywords of a distribution name a higher tier. Empty if they do not."""
    tiers = [None, *TIERS]
    words = re.split(r"[\s,]+", importlib_metadata.metadata(distribution).get("Keywords", ""))
    above = [f"jno-lora-{name}" for name in TIERS if tiers.index(name) > tiers.index(tier)]
    named = [word for word in above if word in words]
    return f"The keyword {named[0]} of the distribution says more than this run.\n" if named else ""


def run(
    cases: list[WrapperCase], only: tuple[str, ...], rank: int | None, *, fast: bool = False
) -> list[CheckResult]:
    """Run all checks of the cases, or those that match `only`, at their rank or at `rank`.

    - `fast`: whether to run only the checks on which others depend, unless `only` is given, and
        only on the first case, until one fails.

    **Raises:** `SelectionError` if no case runs a check that matches `only`.
    """
    if rank is not None:  # `parameters` was counted for another rank
        cases = [
            case if case.rank == rank else dataclasses.replace(case, rank=rank, parameters=None)
            for case in cases
        ]
    only = only or (CAUSES if fast else ("*",))
    chosen = cases[:1] if fast else cases
    results = [r for case in chosen for r in run_checks(case, only, until_failure=fast)]
    if not results:
        raise SelectionError(
            f"No check ran: the `checks` of {', '.join(map(str, cases))} match none of "
            f"{', '.join(only)}. Give `--only` a check that a case runs."
        )
    return results


_OUTCOMES = ("passed", "failed", "advice", "not applicable")


def as_table(results: list[CheckResult], unchecked: str) -> Table:
    """One line per case, and the sentence about unchecked classes that `run` returns."""
    checks = {result.case: collections.defaultdict[str, list[str]](list) for result in results}
    for result in results:
        checks[result.case][_outcome(result)].append(result.check)
    counts = collections.Counter(map(_outcome, results))
    tried = len(results) - counts["not applicable"]
    title = f"{counts['failed']} of {tried} checks {'fails' if counts['failed'] == 1 else 'fail'}"
    following = {(result.case, result.check) for result in causes_of(results)}
    rows: list[tuple[str, ...]] = []
    for case, names in checks.items():
        passed = f"{len(names['passed'])}/{sum(len(names[outcome]) for outcome in _OUTCOMES[:3])}"
        by_name: list[str] = []
        for outcome in ("failed", "advice"):
            causes = [name for name in names[outcome] if (case, name) not in following]
            more = len(names[outcome]) - len(causes)
            by_name.append(", ".join([*causes, *([f"{more} that may follow"] if more else [])]))
        rows.append((case, passed, *(n or "-" for n in by_name), str(len(names["not applicable"]))))
    if counts["advice"]:
        title += f", {counts['advice']} advise"
    columns = [("case", "left"), ("passed", "right"), *((name, "left") for name in _OUTCOMES[1:])]
    # Adapters that were not checked have no tier.
    lines = [unchecked or sentence(results)]
    if idle := sorted({r.check for r in results if _outcome(r) == "not applicable"}):
        lines.insert(0, textwrap.fill(f"Not applicable: {', '.join(idle)}", 100))
    return table(title, columns, rows, "\n".join(lines))


def as_json(results: list[CheckResult], unchecked: str) -> str:
    """The results as JSON. Its keys are stable: later versions only add keys."""
    by_name = {name: tier for tier, names in TIERS.items() for name in names}
    causes = causes_of(results)
    listed = [
        {
            "case": result.case,
            "check": result.check,
            "tier": by_name[result.check],
            "level": result.level,
            "outcome": _outcome(result),
            "message": str(result.error or result.not_applicable or ""),
            "cause": causes.get(result),
        }
        for result in results
    ]
    tiers = {tier: why_below(tier, results) for tier in TIERS}
    tier = None if unchecked else tier_of(results)
    facts = {"jno_lora": __version__, "tier": tier, "missing_for_tier": tiers}
    return json.dumps({**facts, "unchecked": unchecked, "results": listed}, indent=2)


def _outcome(result: CheckResult) -> str:
    if result.error is not None:
        return "failed" if result.level == "required" else "advice"
    return "passed" if result.not_applicable is None else "not applicable"
