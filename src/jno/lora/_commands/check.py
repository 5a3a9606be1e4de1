"""`jno-lora check`: the conformance kit without pytest."""

from .._contract import LoRAWrapper
from .._errors import PluginError, WrapperError
from .._registry import PluginRecord, normalise
from .._showing import Table, table
from ..testing import CheckResult, run_checks, standard_cases
from .importing import find


def find_wrappers(what: str, records: tuple[PluginRecord, ...]) -> list[type[LoRAWrapper]]:
    """The classes that `MODULE:CLASS`, or the name of a distribution, stands for.

    **Raises:** `PluginError` if the class or plugin is missing.
    """
    if ":" not in what:
        return _wrappers_of_distribution(what, records)
    found = find(what, "my_package.adapters:MyAdapter")
    if not (isinstance(found, type) and issubclass(found, LoRAWrapper)):
        raise PluginError(f"{what!r} is {found!r}, not a subclass of jno.lora.LoRAWrapper.")
    return [found]


def run(wrappers: list[type[LoRAWrapper]]) -> tuple[list[CheckResult], str]:
    """Every check on every common Equinox layer that the classes claim.

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
    results = [r for own in cases.values() for case in own for r in run_checks(case)]
    return results, left_out if unknown else ""


def failures(results: list[CheckResult], *, strict: bool = False) -> list[CheckResult]:
    """The results that fail the command: those of required checks; with `strict`, advice too."""
    failed = (result for result in results if result.error is not None)
    return [result for result in failed if strict or result.level == "required"]


def as_table(results: list[CheckResult], left_out: str) -> Table:
    """One line per case, and the sentence that `run` returns."""
    applicable = [result for result in results if result.not_applicable is None]
    failed = failures(results)
    advised = [result for result in failures(results, strict=True) if result not in failed]
    inapplicable = [result for result in results if result.not_applicable is not None]

    def row(case: str) -> tuple[str, ...]:
        def names(some: list[CheckResult]) -> list[str]:
            return [result.check for result in some if result.case == case]

        tried = len(names(applicable))
        passed = tried - len(names(failed)) - len(names(advised))
        groups = (", ".join(names(some)) or "-" for some in (failed, advised, inapplicable))
        return (case, f"{passed}/{tried}", *groups)

    title = f"{len(failed)} of {len(applicable)} checks {'fails' if len(failed) == 1 else 'fail'}"
    columns = [("case", "left"), ("passed", "right"), ("failed", "left"), ("advice", "left")]
    return table(
        f"{title}, {len(advised)} advise" if advised else title,
        [*columns, ("not applicable", "left")],
        map(row, dict.fromkeys(result.case for result in results)),
        caption=left_out,
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
