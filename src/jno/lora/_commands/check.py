"""`jno-lora check`: the conformance kit without pytest."""

from .._contract import LoRAWrapper
from .._errors import PluginError, WrapperError
from .._registry import PluginRecord, normalise
from .._showing import Table, table
from ..testing import CheckResult, run_checks, standard_cases
from .importing import find


def find_wrappers(what: str, records: tuple[PluginRecord, ...]) -> list[type[LoRAWrapper]]:
    """The classes that `MODULE:CLASS` or the name of a distribution means.

    **Raises:** `PluginError` if there is no such class or plugin.
    """
    if ":" not in what:
        return _wrappers_of_distribution(what, records)
    found = find(what, "my_package.adapters:MyAdapter")
    if not (isinstance(found, type) and issubclass(found, LoRAWrapper)):
        raise PluginError(f"{what!r} is {found!r}, not a subclass of jno.lora.LoRAWrapper.")
    return [found]


def run(wrappers: list[type[LoRAWrapper]]) -> list[CheckResult]:
    """Every check on every common Equinox layer that the classes claim.

    **Raises:** `WrapperError` if a class claims none of them.
    """
    results: list[CheckResult] = []
    for wrapper in wrappers:
        cases = standard_cases(wrapper)
        if not cases:
            raise WrapperError(
                f"{wrapper.__name__} claims none of the layers that this command knows. Write the "
                "case yourself: `jno.lora.testing.WrapperCase` and `parametrize_with_checks`."
            )
        for case in cases:
            results.extend(run_checks(case))
    return results


def as_table(results: list[CheckResult]) -> Table:
    """One line per case."""
    applicable = [result for result in results if result.not_applicable is None]
    failed = [result for result in applicable if result.error is not None]

    def of(case: str, some: list[CheckResult]) -> list[str]:
        return [result.check for result in some if result.case == case]

    def row(case: str) -> tuple[str, str, str, str]:
        tried, wrong = of(case, applicable), of(case, failed)
        left = [check for check in of(case, results) if check not in tried]
        passed = f"{len(tried) - len(wrong)}/{len(tried)}"
        return (case, passed, ", ".join(wrong) or "-", ", ".join(left) or "-")

    return table(
        f"{len(failed)} of {len(applicable)} checks {'fails' if len(failed) == 1 else 'fail'}",
        [("case", "left"), ("passed", "right"), ("failed", "left"), ("not applicable", "left")],
        map(row, dict.fromkeys(result.case for result in results)),
    )


def _wrappers_of_distribution(
    distribution: str, records: tuple[PluginRecord, ...]
) -> list[type[LoRAWrapper]]:
    own = [record for record in records if record.distribution == normalise(distribution)]
    for record in own:
        if not record.usable:
            raise PluginError(
                f"The plugin {record.describe()} is {record.status}: {record.error}"
            ) from record.error
    wrappers = [wrapper.cls for record in own for wrapper in record.wrappers]
    if not wrappers:
        known = ", ".join(dict.fromkeys(record.distribution for record in records)) or "none"
        raise PluginError(
            f"No installed plugin belongs to a distribution {distribution!r} (installed: {known}). "
            "To check a class, give MODULE:CLASS."
        )
    return wrappers
