"""Checks of an adapter on quantised weights, in a bank, and as a function of a parameter.

Each of the three comes from a distribution that may be missing. Then its check does not run.
"""

import importlib
import importlib.util

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jno.lora import JnoLoraError, extract_adapters
from jno.lora.extending import is_coded, statistics_of

from ._case import WrapperCase, perturbed
from ._comparisons import relative_error, require_close
from ._conformance import ConformanceError, NotApplicableError, advice, required, skip_unless
from ._programs import output

MISSING, REFUSED = "is not installed", "the adapter is refused there"
_TOLERANCE = 1e-5


def _plain(case: WrapperCase) -> PyTree:
    base = case.make_base()
    skip_unless(
        not any(map(is_coded, jax.tree.leaves(base, is_leaf=is_coded))), "the layer has codes"
    )
    return base


def _imported(distribution: str) -> PyTree:
    module = distribution.replace("-", "_")
    skip_unless(importlib.util.find_spec(module), f"{distribution} {MISSING}")
    return importlib.import_module(module)


def _refused(err: JnoLoraError) -> NotApplicableError:
    """Where adapters of this kind cannot go, an error that says so is right.

    **Raises:** the cause of the error, if this is not an error of ours: a call that crashed.
    """
    if err.__cause__ is not None and not isinstance(err.__cause__, JnoLoraError):
        raise err.__cause__
    return NotApplicableError(f"{REFUSED}: {' '.join(f'{err}'.split())}")


@required("read the weight only as `CodedArray` allows, such as `self.base.weight @ x`.")
def check_quantized_base(case: WrapperCase) -> None:
    """On a quantised layer, the adapter computes what it computes on the dequantised layer."""
    quantized, base = _imported("jno-lora-quantized"), _plain(case)
    try:
        coded = quantized.quantize(base, "int8")
        adapter = perturbed(case.build(coded))
    except JnoLoraError as err:
        raise _refused(err) from err
    plain = perturbed(case.build(quantized.dequantize(coded)))
    problem = "On a quantised layer, the output differs from the output on the dequantised layer"
    require_close(output(case, adapter), output(case, plain), _TOLERANCE, problem)


@advice("return from `low_rank_form` what `__call__` computes.")
def check_bank(case: WrapperCase) -> None:
    """In a bank, each of two adapters gives the output that it gives alone."""
    bank, base = _imported("jno-lora-bank"), _plain(case)
    keys = jax.random.split(jax.random.key(3))
    adapters = [perturbed(case.build(base, key), 0.3 / n) for n, key in enumerate(keys, 1)]
    try:
        model = (
            bank.AdapterBank([base], [extract_adapters([adapter]) for adapter in adapters])
            .snapshot()
            .model
        )
    except JnoLoraError as err:
        raise _refused(err) from err
    for slot, adapter in enumerate(adapters, 1):
        (in_slot,) = bank.at_slot(model, slot)
        problem = "In a bank, the adapter's output differs from the output that it gives alone"
        require_close(output(case, in_slot), output(case, adapter), _TOLERANCE, problem)


@advice("see `jno_lora_conditional.testing.check_conditional`, which runs here.")
def check_conditional(case: WrapperCase) -> None:
    """The adapter's arrays can be functions of a parameter: calls, merges, derivatives, files."""
    conditional, base = _imported("jno-lora-conditional"), _plain(case)
    skip_unless(not statistics_of(case.wrapper), "the adapter needs statistics")
    arrays = jax.tree.leaves(eqx.filter(case.make(), eqx.is_array))
    is_complex = any(map(jnp.iscomplexobj, arrays))
    skip_unless(not is_complex, "the adapter is complex, and files hold no complex128")
    skip_unless(_is_double(case), "the layer computes in single precision")
    check = importlib.import_module(f"{conditional.__name__}.testing").check_conditional
    given = {"rank": case.rank, "options": case.options, "call": case.call, "rounding": 1e-6}
    try:
        check(case.wrapper, base, *case.make_inputs(), **given)
    except JnoLoraError as err:
        raise _refused(err) from err
    except ConformanceError as err:
        raise ConformanceError(f"{err}", "") from err


def _is_double(case: WrapperCase) -> bool:
    """Whether the layer of float64 notices a change that float32 cannot hold."""
    with jax.enable_x64(True):
        layer, inputs = case.make_base(jnp.float64), case.make_inputs(jnp.float64)

        def nearby(leaf: PyTree) -> PyTree:
            return leaf * (1 + 1e-10) if eqx.is_inexact_array(leaf) else leaf

        moved = output(case, *jax.tree.map(nearby, (layer, inputs)))
        return relative_error(moved, output(case, layer, inputs)) > 0
