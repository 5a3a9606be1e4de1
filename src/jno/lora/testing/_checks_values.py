"""Checks of an adapter's output: at the start, merged, and in every precision."""

import contextlib
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from .._contract import merged_layer
from .._errors import JnoLoraError, WrapperError
from .._merge import merge_lora, unwrap_lora
from ._case import NOT_MERGEABLE, WrapperCase, split
from ._conformance import (
    ConformanceError,
    advice,
    relative_error,
    require,
    require_close,
    required,
)

# Float32: rounding of a few hundred terms. Half precision: a fixed number of roundings of the
# output's own dtype; a weight that was changed and cast back (PiSSA) adds one per weight.
_FLOAT32 = 1e-5
_FLOAT64 = 1e-11
_HALF_ROUNDINGS = 16
_HALVES = (jnp.bfloat16, jnp.float16)


@required
def check_identity_at_init(case: WrapperCase) -> None:
    """A fresh adapter changes nothing."""
    require_close(
        case.run(case.make()),
        case.run(case.make_base()),
        _FLOAT32,
        "The fresh adapter's output differs from the layer's",
        "initialise so that the update is zero (one factor zero), or take the update that the "
        "factors make out of the base.",
    )


@required
def check_identity_in_half_precision(case: WrapperCase) -> None:
    """A fresh adapter of a half-precision layer changes nothing but roundings."""
    for dtype in _HALVES:
        inputs, base = case.make_inputs(dtype), case.make_base(dtype)
        require_close(
            case.run(case.build(base), inputs),
            case.run(base, inputs),
            _HALF_ROUNDINGS * float(jnp.finfo(dtype).eps),
            f"With {jnp.dtype(dtype).name}, the fresh adapter's output differs from the layer's",
            "compute decompositions and differences in float32, and cast the result back.",
        )


@required
def check_adapter_acts(case: WrapperCase) -> None:
    """An adapter whose arrays have moved computes something else than the layer."""
    error = relative_error(case.run(case.make_trained()), case.run(case.make_base()))
    require(
        error > 1e-4,
        "After every trainable array moved, the output is still the layer's.",
        "use the adapter's arrays in `__call__`.",
    )


@required
def check_merge_equals_call(case: WrapperCase) -> str | None:
    """The merged layer computes what the adapter computes, for several inputs."""
    if not case.mergeable:
        return NOT_MERGEABLE
    trained = case.make_trained()
    plain = merged_layer(trained)
    for inputs in (case.make_inputs(seed=11), case.make_inputs(seed=12)):
        require_close(
            case.run(plain, inputs),
            case.run(trained, inputs),
            4 * _FLOAT32,
            "`merge()(x)` and `wrapper(x)` differ",
            "let both follow one law; mind the scale, the bias, groups, strides and padding.",
        )
    return None


@required
def check_merge_restores_form(case: WrapperCase) -> None:
    """`merge()` gives a layer of the base's class, structure, shapes and dtypes."""
    if not case.mergeable:
        _check_refuses_to_merge(case)
        return
    for dtype in (None, jnp.bfloat16):
        trained = case.make_trained(dtype)
        try:
            plain: Any = merge_lora(trained)
        except JnoLoraError as err:
            raise ConformanceError(
                f"{err}\nWhat to do: put the new weight into `base` with "
                "`eqx.tree_at`, cast to the old weight's dtype."
            ) from err
        require(
            type(plain) is type(case.make_base()),
            f"`merge()` gives a {type(plain).__name__}.",
            "return the base with another weight, not the adapter and not a new kind of layer.",
        )


def _check_refuses_to_merge(case: WrapperCase) -> None:
    try:
        merged_layer(case.make_trained())
    except WrapperError:
        return
    raise ConformanceError(
        "`merge()` of an adapter that cannot be merged does not refuse.\n"
        "What to do: raise a `WrapperError` that says why, and what to do instead."
    )


@required
def check_unwrap_restores(case: WrapperCase) -> None:
    """`unwrap()` gives the original layer, to rounding, even after training."""
    base: Any = case.make_base()
    plain = unwrap_lora(case.make_trained())
    require(
        jax.tree.structure(plain) == jax.tree.structure(base)
        and all(
            relative_error(a, b) <= 1e-6
            for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(base), strict=True)
            if eqx.is_array(b)
        ),
        "`unwrap()` does not give the original layer back.",
        "leave `base` as it came, or define `unwrap` to undo what `__init__` did to it.",
    )


@required
def check_output_dtype(case: WrapperCase) -> None:
    """The output has the dtype that the layer gives, in every precision."""
    for dtype in (jnp.float32, *_HALVES, jnp.float64):
        x64 = jax.enable_x64(True) if dtype is jnp.float64 else contextlib.nullcontext()
        with x64:
            inputs = case.make_inputs(dtype)
            layers = (case.make_base(dtype), case.make_trained(dtype))
            expected, got = ([y.dtype for y in _outputs(case, x, inputs)] for x in layers)
        require(
            got == expected,
            f"With {jnp.dtype(dtype).name}, the output is {got}, the layer's is {expected}.",
            "cast the adapter's arrays to the dtype of the features when they are used.",
        )


def _outputs(case: WrapperCase, layer: Any, inputs: tuple[Any, ...]) -> list[Any]:
    return jax.tree.leaves(case.run(layer, inputs))


@advice
def check_adapter_dtype(case: WrapperCase) -> None:
    """The trainable arrays of a half-precision layer's adapter are float32."""
    for dtype in _HALVES:
        found = {str(leaf.dtype) for leaf in jax.tree.leaves(split(case.make(dtype))[0])}
        require(
            found == {"float32"},
            f"With {jnp.dtype(dtype).name}, the trainable arrays are {sorted(found)}.",
            "create them as float32 (small updates vanish in half precision); cast on use.",
        )


@advice
def check_double_precision(case: WrapperCase) -> None:
    """With x64 enabled, everything happens in float64."""
    with jax.enable_x64(True):
        inputs, base = case.make_inputs(jnp.float64), case.make_base(jnp.float64)
        trained = case.make_trained(jnp.float64)
        start = relative_error(case.run(case.build(base), inputs), case.run(base, inputs))
        plain = merged_layer(trained) if case.mergeable else trained
        merge = relative_error(case.run(plain, inputs), case.run(trained, inputs))
    require(
        max(start, merge) <= _FLOAT64,
        f"With float64, the output differs by {start:.1e} at the start, and by {merge:.1e} merged "
        "(relative).",
        "create arrays in the dtype of the base's weight where that is more than float32, and "
        "write no `jnp.float32` into the computation.",
    )
