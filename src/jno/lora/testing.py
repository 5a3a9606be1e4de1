"""The conformance kit for authors of adapters: the door to `jno_lora_testing`."""

from ._errors import imported_for

with imported_for("jno.lora.testing", "testing", "jno_lora_testing"):
    from jno_lora_testing import (
        ADVICE,
        CHECKS,
        CheckResult,
        ConformanceError,
        Symmetry,
        WrapperCase,
        check_wrapper,
        cyclic_shift,
        invariant,
        messages,
        parametrize_with_checks,
        permutation,
        rotation,
        run_checks,
        standard_cases,
        standard_layers,
        wrapper_checks,
    )

__all__ = [
    "ADVICE",
    "CHECKS",
    "CheckResult",
    "ConformanceError",
    "Symmetry",
    "WrapperCase",
    "check_wrapper",
    "cyclic_shift",
    "invariant",
    "messages",
    "parametrize_with_checks",
    "permutation",
    "rotation",
    "run_checks",
    "standard_cases",
    "standard_layers",
    "wrapper_checks",
]
