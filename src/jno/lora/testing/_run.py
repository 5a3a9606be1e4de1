"""All checks by their ids, and how they are run."""

import dataclasses
import functools
import traceback
from collections.abc import Callable, Mapping

import jax

from ._case import WrapperCase
from ._checks_form import (
    check_applies_to_not_greedy,
    check_applies_to_total,
    check_contract,
    check_key_forms,
    check_no_shared_buffers,
    check_parameter_count,
    check_reads_like_the_layer,
    check_state_round_trip,
    check_trainable_fields,
)
from ._checks_sharding import check_sharding
from ._checks_transforms import (
    check_checkpoint,
    check_constructor_vmap_and_scan,
    check_eval_shape,
    check_gradients,
    check_jit,
    check_merge_gradients,
    check_no_lapack_in_step,
    check_stacked_layers,
    check_vmap,
)
from ._checks_values import (
    check_adapter_acts,
    check_adapter_dtype,
    check_double_precision,
    check_identity_at_init,
    check_identity_in_half_precision,
    check_merge_equals_call,
    check_merge_restores_form,
    check_output_dtype,
    check_unwrap_restores,
)
from ._conformance import ConformanceError

_ALL: tuple[Callable[[WrapperCase], str | None], ...] = (
    check_contract,
    check_applies_to_total,
    check_applies_to_not_greedy,
    check_key_forms,
    check_trainable_fields,
    check_parameter_count,
    check_no_shared_buffers,
    check_reads_like_the_layer,
    check_state_round_trip,
    check_identity_at_init,
    check_identity_in_half_precision,
    check_adapter_acts,
    check_merge_equals_call,
    check_merge_restores_form,
    check_unwrap_restores,
    check_output_dtype,
    check_adapter_dtype,
    check_double_precision,
    check_gradients,
    check_merge_gradients,
    check_jit,
    check_vmap,
    check_constructor_vmap_and_scan,
    check_stacked_layers,
    check_eval_shape,
    check_checkpoint,
    check_no_lapack_in_step,
    check_sharding,
)

# Every check by its id. Ids are stable: they are what `expected_failures` names. A check that has
# nothing to see in a case returns why.
CHECKS: Mapping[str, Callable[[WrapperCase], str | None]] = {
    check.__name__.removeprefix("check_").replace("_", "-"): check for check in _ALL
}


@dataclasses.dataclass(frozen=True)
class CheckResult:
    """The outcome of one check: it failed with an `error`, or was `not_applicable`, or passed.

    `not_applicable` says why: that the adapter does not claim stacked layers, for example.
    """

    case: str
    check: str
    error: ConformanceError | None
    not_applicable: str | None = None


def wrapper_checks(case: WrapperCase) -> dict[str, Callable[[], str | None]]:
    """The checks of `case`: functions without arguments, by their ids.

    Each raises `ConformanceError` if the wrapper breaks that promise, and returns `None` if it
    keeps it, or why the check is not applicable. They run under strict dtype promotion and with
    rank promotion forbidden, whatever the configuration is.
    """
    return {name: functools.partial(_run, name, case) for name in CHECKS}


def run_checks(case: WrapperCase) -> list[CheckResult]:
    """Run every check of `case`, whether the others pass or not."""
    results: list[CheckResult] = []
    for name, check in wrapper_checks(case).items():
        error = not_applicable = None
        try:
            not_applicable = check()
        except ConformanceError as err:
            error = err
        results.append(CheckResult(str(case), name, error, not_applicable))
    return results


def check_wrapper(case: WrapperCase) -> None:
    """Run every check of `case`.

    **Raises:** `ConformanceError` that lists every broken promise.
    """
    failed = [result for result in run_checks(case) if result.error is not None]
    if failed:
        listed = "\n\n".join(f"{result.error}" for result in failed)
        raise ConformanceError(f"{case} fails {len(failed)} of {len(CHECKS)} checks.\n\n{listed}")


def _run(name: str, case: WrapperCase) -> str | None:
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        try:
            return CHECKS[name](case)
        except ConformanceError as err:
            raise ConformanceError(f"[{name}] {case}: {err}") from err
        except Exception as err:
            where = traceback.extract_tb(err.__traceback__)[-1]
            raise ConformanceError(
                f"[{name}] {case}: the check stopped at an exception, {type(err).__name__}: {err}\n"
                f"(raised in {where.name}, {where.filename}:{where.lineno})\n"
                f"What is checked: {CHECKS[name].__doc__}"
            ) from err
