"""The plugin's entry points: enable the adapters when jNO is imported, and report to `doctor`."""

import jno
from jno.lora import __path__ as path_of_ours, hookimpl

jno_lora_api = 1


def enable_inside_jno() -> None:
    """Called by `jno.lora` when it is imported inside jNO."""
    from ._switch import enable_at_import

    enable_at_import()


@hookimpl
def jno_lora_doctor(facts: list[tuple[str, str]], troubles: list[str]) -> None:
    """Report which jNO is installed, which adapters it uses, and bad installations."""
    from ._installs import describe_jno, find_bad_installs, jno_version
    from ._switch import is_enabled

    if jno_version() is not None:
        facts.append((describe_jno(), "ours inside" if is_enabled() else "uses its own adapters"))
    troubles += find_bad_installs(list(path_of_ours), getattr(jno, "__file__", None))
