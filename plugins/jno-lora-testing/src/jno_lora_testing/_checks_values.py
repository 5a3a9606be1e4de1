"""Checks of an adapter's output: at the start, merged, and in every precision."""

import contextlib
import dataclasses
from collections.abc import Mapping

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import PyTree

from jno.lora import WrapperError, unwrap_lora
from jno.lora.extending import run, takes, with_arrays

from ._case import NOT_MERGEABLE, WrapperCase, split
from ._checks_symmetries import require_symmetries
from ._comparisons import arrays_of, is_finite, relative_error, require, require_close
from ._conformance import ConformanceError, advice, is_refusal, raised_in, required, skip_unless
from ._programs import StartAndMerge, merged, output, start_and_merge

# Float32: the rounding of a few hundred terms. Half precision: several roundings of the output; a
# weight that was changed and cast back (PiSSA) adds another rounding.
_FLOAT32 = 1e-5
_FLOAT64 = 1e-11
_HALF_ROUNDINGS = 16
_HALVES = (jnp.bfloat16, jnp.float16)


@required(
    "start with an update of zero (one factor is zero), or subtract the initial update from the "
    "base."
)
def check_identity_at_init(case: WrapperCase) -> None:
    """A fresh adapter does not change the layer's output."""
    fresh, plain = output(case, case.make()), output(case, case.make_base())
    require_close(fresh, plain, _FLOAT32, "The fresh adapter's output differs from the layer's")


@required("compute decompositions and differences in float32, and cast the result back.")
def check_identity_in_half_precision(case: WrapperCase) -> None:
    """A fresh adapter changes the output of a half-precision layer only by rounding."""
    dtypes = halves_of(case)
    skip_unless(dtypes, NO_HALF)
    for dtype in dtypes:
        inputs = case.make_inputs(dtype)
        require_close(
            output(case, case.make(dtype), inputs),
            output(case, case.make_base(dtype), inputs),
            _HALF_ROUNDINGS * float(jnp.finfo(dtype).eps),
            f"With {jnp.dtype(dtype).name}, the fresh adapter's output differs from the layer's",
        )


NO_HALF = "the layer itself cannot compute in half precision"


def halves_of(case: WrapperCase) -> list[DTypeLike]:
    """The half precisions that the layer supports. (An FFT supports neither.)"""
    dtypes: list[DTypeLike] = []
    for dtype in _HALVES:
        base, inputs = case.make_base(dtype), case.make_inputs(dtype)
        with contextlib.suppress(Exception):
            output(case, base, inputs)
            dtypes.append(dtype)
    return dtypes


@required("use the adapter's arrays in `__call__`.")
def check_adapter_acts(case: WrapperCase) -> None:
    """An adapter whose trainable arrays have moved changes the outputs of the layer."""
    error = relative_error(output(case, case.make_trained()), output(case, case.make_base()))
    require(error > 1e-4, "After every trainable array moved, the output is still the layer's.")


@required("compute both by one law; check the scale, the bias, groups, strides and padding.")
def check_merge_equals_call(case: WrapperCase) -> None:
    """The merged layer has the same outputs as the adapter, for several inputs."""
    skip_unless(case.mergeable, NOT_MERGEABLE)
    trained = case.make_trained()
    plain = merged(trained)
    require(
        len(arrays_of(plain)) == len(arrays_of(with_arrays(case.make_base()))),
        "`merge()` gives a layer with more, or fewer, arrays than the layer had.",
        "put the new weight into `base` with `eqx.tree_at`, and leave the rest.",
    )
    for seed in (11, 12):
        inputs = case.make_inputs(seed=seed)
        expected, got = output(case, trained, inputs), output(case, plain, inputs)
        require_close(got, expected, 4 * _FLOAT32, "`merge()(x)` and `wrapper(x)` differ")


@required(
    "compare `merge()` with the paper: a transposed matrix, a scale, the order of factors. If the "
    "case's `law` is wrong, correct that."
)
def check_law(case: WrapperCase) -> None:
    """The merged layer agrees with the case's `law`."""
    skip_unless(case.law is not None, "the case has no `law`")
    skip_unless(case.mergeable, NOT_MERGEABLE)
    trained = case.make_trained()
    require_law(case, trained, merged(trained))


def require_law(case: WrapperCase, trained: PyTree, plain: PyTree, setting: str = "") -> None:
    """**Raises:** `ConformanceError` if `plain` does not agree with the case's law."""
    assert case.law is not None
    expected = case.law(trained)
    attributes = expected if isinstance(expected, Mapping) else {"weight": expected}
    for name, array in attributes.items():
        problem = f"{setting}`merge().{name}` and the law differ"
        require_close(getattr(plain, name), array, 4 * _FLOAT32, problem)


@required(
    "clamp a rank that is too large, or raise a `ValueError` in `__init__` that tells which ranks "
    "are possible."
)
def check_ranks(case: WrapperCase) -> None:
    """Ranks 1 and 3, and a rank larger than the layer, start and merge correctly."""
    skip_unless("rank" in takes(case.wrapper), "the adapter takes no rank")
    beyond = 1 + max((array.size for array in arrays_of(case.make_base())), default=0)
    for rank in {1, 3, beyond} - {case.rank}:  # other checks cover the rank of the case
        ranked = dataclasses.replace(case, rank=rank)
        try:
            built = run(start_and_merge, ranked, case.make_base(), case.make_inputs())
        except Exception as err:
            require(
                is_refusal(err),
                f"With rank {rank}, it fails: {type(err).__name__}: {err}\n"
                f"{raised_in(err, case.wrapper)}",
            )
            continue
        require_start_and_merge(case, built, f"With rank {rank}, ")


def require_start_and_merge(case: WrapperCase, built: StartAndMerge, setting: str) -> None:
    """**Raises:** `ConformanceError` unless the adapter starts, merges and follows its law."""
    require(is_finite(built.trained), f"{setting}the output is not finite.")
    problem = f"{setting}the fresh adapter's output differs from the layer's"
    require_close(built.start, output(case, case.make_base()), _FLOAT32, problem)
    problem = f"{setting}`merge()(x)` and `wrapper(x)` differ"
    require_close(built.merged, built.trained, 4 * _FLOAT32, problem)
    if case.law is not None and case.mergeable:
        require_law(case, built.adapter, built.plain, setting)


@required("put the new weight, cast to the old dtype, into `base` with `eqx.tree_at`.")
def check_merge_restores_form(case: WrapperCase) -> None:
    """`merge()` returns a layer with the base's class, structure, shapes and dtypes."""
    if not case.mergeable:
        try:
            case.make_trained().merge()
        except WrapperError:
            return
        raise ConformanceError(
            "`merge()` of an adapter that cannot be merged does not raise.",
            "raise a `WrapperError` that says why, and what to do instead.",
        )
    for dtype in (None, jnp.bfloat16):
        trained = case.make_trained(dtype)
        plain = merged(trained)
        is_layer = type(plain) is type(case.make_base())
        require(is_layer, f"`merge()` gives a {type(plain).__name__}.")


@required("store `base` unchanged, or define `unwrap` to undo the changes of `__init__`.")
def check_unwrap_restores(case: WrapperCase) -> None:
    """`unwrap()` returns the original layer up to rounding, even after training."""
    base: PyTree = case.make_base()
    plain = unwrap_lora(case.make_trained())
    arrays = zip(jax.tree.leaves(plain), jax.tree.leaves(base), strict=True)
    require(
        jax.tree.structure(plain) == jax.tree.structure(base)
        and all(relative_error(got, old) <= 1e-6 for got, old in arrays if eqx.is_array(old)),
        "`unwrap()` does not give the original layer back.",
    )


@required("cast the adapter's arrays to the dtype of the features when they are used.")
def check_output_dtype(case: WrapperCase) -> None:
    """The output has the dtype of the layer's output, in every precision."""
    for dtype in (None, *halves_of(case), jnp.float64):
        with jax.enable_x64(True) if dtype is jnp.float64 else contextlib.nullcontext():
            layers, inputs = (
                (case.make_base(dtype), case.make_trained(dtype)),
                case.make_inputs(dtype),
            )
            outputs = [jax.tree.leaves(output(case, layer, inputs)) for layer in layers]
        expected, got = ([leaf.dtype for leaf in leaves] for leaves in outputs)
        require(
            got == expected,
            f"With {jnp.dtype(dtype or jnp.float32).name}, the output is {got}, the layer's is "
            f"{expected}.",
        )


@advice("create the arrays as float32 (small updates vanish in half precision); cast on use.")
def check_adapter_dtype(case: WrapperCase) -> None:
    """The trainable arrays of a half-precision layer's adapter are float32 (or complex64)."""
    for dtype in _HALVES:
        dtypes = {str(leaf.dtype) for leaf in jax.tree.leaves(split(case.make(dtype))[0])}
        require(
            dtypes <= {"float32", "complex64"},
            f"With {jnp.dtype(dtype).name}, the trainable arrays are {sorted(dtypes)}.",
        )


@advice(
    "create arrays in the dtype of the base's weight if it is wider than float32, and use no "
    "`jnp.float32` in the computation."
)
def check_double_precision(case: WrapperCase) -> None:
    """With x64 enabled, a float64 layer is adapted, called and merged in float64.

    If the case names symmetries, the adapter keeps them in float64 as precisely as the layer.
    """
    with jax.enable_x64(True):
        inputs, base = case.make_inputs(jnp.float64), case.make_base(jnp.float64)
        fresh, trained = case.make(jnp.float64), case.make_trained(jnp.float64)
        start = relative_error(output(case, fresh, inputs), output(case, base, inputs))
        plain = merged(trained) if case.mergeable else trained
        merge = relative_error(output(case, plain, inputs), output(case, trained, inputs))
        require(
            max(start, merge) <= _FLOAT64,
            f"With float64, the output differs by {start:.1e} at the start, and by {merge:.1e} "
            "merged (relative).",
        )
        adapted = {"the trained adapter in float64": trained, "the merged layer in float64": plain}
        require_symmetries(case, base, adapted, inputs, _FLOAT64)
