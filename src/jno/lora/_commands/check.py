"""`jno-lora check`: the conformance kit without pytest."""

import importlib

from .._contract import LoRAWrapper
from .._errors import PluginError, WrapperError
from .._registry import normalise
from .._showing import Table, table
from ..testing import CheckResult, run_checks, standard_cases
from ._group import records


def find_wrappers(what: str) -> list[type[LoRAWrapper]]:
    """The classes that `MODULE:CLASS`, or the name of a distribution, stands for.

    **Raises:** `PluginError` if the class or plugin is missing.
    """
    module_name, colon, name = what.partition(":")
    if not colon:
        return _wrappers_of_distribution(what)
    try:
        found = getattr(importlib.import_module(module_name), name)
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
    for record in own:
        if not record.usable:
            raise PluginError(
                f"The plugin {record.describe()} cannot be used ({record.status}): {record.error}"
            ) from record.error
    wrappers = [wrapper.cls for record in own for wrapper in record.wrappers]
    if own and not wrappers:
        raise PluginError(f"The plugins of {distribution!r} provide no adapters to check.")
    if not wrappers:
        known = ", ".join(dict.fromkeys(it.distribution for it in records())) or "none"
        raise PluginError(
            f"No installed plugin belongs to a distribution {distribution!r} (installed: {known}). "
            "To check a class, give MODULE:CLASS."
        )
    return wrappers


def run(wrappers: list[type[LoRAWrapper]]) -> tuple[list[CheckResult], str]:
    """Run every check on every common Equinox layer that the classes claim.

    **Returns:** the results, and a sentence about classes that claim no such layer.

    **Raises:** `WrapperError` if no class claims any.
    """
    cases = {wrapper: standard_cases(wrapper) for wrapper in wrappers}
    unknown = [wrapper.__name__ for wrapper, own in cases.items() if not own]
    left_out = (
        f"Not checked, for they claim no layer that this command knows: {', '.join(unknown)}. "
        "Write their cases: `jno.lora.testing.WrapperCase` and `parametrize_with_checks`."
    )
    if len(unknown) == len(wrappers):
        raise WrapperError(left_out)
    results = [result for own in cases.values() for case in own for result in run_checks(case)]
    return results, left_out if unknown else ""


def as_table(results: list[CheckResult], left_out: str) -> Table:
    """One line per case, and the sentence that `run` returns."""
    passed = [it for it in results if it.error is None and it.not_applicable is None]
    failed = [it for it in results if it.error is not None and it.level == "required"]
    advised = [it for it in results if it.error is not None and it.level == "advice"]
    inapplicable = [it for it in results if it.not_applicable is not None]

    def row(case: str) -> tuple[str, ...]:
        groups = [
            [result.check for result in group if result.case == case]
            for group in (passed, failed, advised, inapplicable)
        ]
        tried = sum(map(len, groups[:3]))
        named = (", ".join(group) or "-" for group in groups[1:])
        return (case, f"{len(groups[0])}/{tried}", *named)

    applicable = len(results) - len(inapplicable)
    title = f"{len(failed)} of {applicable} checks {'fails' if len(failed) == 1 else 'fail'}"
    columns = [("case", "left"), ("passed", "right"), ("failed", "left"), ("advice", "left")]
    return table(
        f"{title}, {len(advised)} advise" if advised else title,
        [*columns, ("not applicable", "left")],
        map(row, dict.fromkeys(result.case for result in results)),
        caption=left_out,
    )
