"""Calling foundax, and an adapter in training."""

import contextlib
import warnings
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jno.lora import lora_trainable_filter, merge_lora, unwrap_lora


@contextlib.contextmanager
def foundax_regime():
    """Settings that foundax's own calls need: they add a bias without reshaping it, multiply real
    numbers with `1j`, and write complex128 into complex64 when x64 is enabled.
    """
    with (
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "scatter inputs have incompatible", FutureWarning)
        yield


@eqx.filter_jit
def _compiled(layer: Any, inputs: tuple[Any, ...]) -> Any:
    return layer(*inputs)


def run(layer: Any, *inputs: Any) -> Any:
    """`layer(*inputs)` in that regime. Compiled: thousands of calls are made here, of few forms."""
    with foundax_regime():
        return _compiled(layer, inputs)


def run_strict(layer: Any, *inputs: Any) -> Any:
    """The same for layers that keep to our own regime."""
    return _compiled(layer, inputs)


def run_spectral(layer: Any, x: Any) -> Any:
    """The same, in float32 at least: a Fourier transform takes no half precision."""
    return run(layer, x.astype(jnp.float32 if x.dtype.itemsize < 4 else x.dtype))


def filled(make: Any, key: Any) -> Any:
    """`make(key)` with other random numbers: only its shapes are computed, so nothing compiled."""
    shapes = eqx.filter_eval_shape(make, key)
    random = np.random.default_rng(np.asarray(jax.random.key_data(key)))

    def fill(leaf: Any) -> Any:
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        is_float = jnp.issubdtype(leaf.dtype, jnp.floating)
        numbers = 0.3 * random.normal(size=leaf.shape) if is_float else np.zeros(leaf.shape)
        return jnp.asarray(numbers.astype(leaf.dtype))

    return jax.tree.map(fill, shapes)


def perturbed(model: Any, size: float = 0.3) -> Any:
    """`model` after some training, with noise on every array that trains."""
    random = np.random.default_rng(0)

    def move(trains: Any, leaf: Any) -> Any:
        if not trains:
            return leaf
        noise = size * random.normal(size=leaf.shape)
        return jnp.asarray((np.asarray(leaf) + noise).astype(leaf.dtype))

    return jax.tree.map(move, lora_trainable_filter(model), model)


class Everything(NamedTuple):
    """A layer or model at each stage, and the gradient of a loss once it is trained a little."""

    base: Any
    adapted: Any
    trained: Any
    merged: Any
    unwrapped: Any
    gradient: Any


@eqx.filter_jit
def _merged_and_unwrapped(model: Any) -> Any:
    return merge_lora(model), unwrap_lora(model)


@eqx.filter_jit
def _output_and_gradient(model: Any, inputs: tuple[Any, ...]) -> Any:
    def loss(trainable: Any, frozen: Any) -> Any:
        outputs = eqx.combine(trainable, frozen)(*inputs)
        return sum(jnp.mean(jnp.sin(y)) for y in jax.tree.leaves(outputs)), outputs

    parts = eqx.partition(model, lora_trainable_filter(model))
    gradient, outputs = jax.grad(loss, has_aux=True)(*parts)
    return outputs, gradient


def check_everything(make: Any, data: Any, adapt: Any, key: Any) -> Everything:
    """An adapter changes nothing at first and something later, and merges into the same form.

    **Arguments:**

    - `make`, `data`: make the layer or model, and the inputs of a call, from a key.
    - `adapt`: adapts it, given a key.
    """
    base, inputs = filled(make, key), data(key)
    adapted = adapt(base, key)
    trained = perturbed(adapted, size=0.2)
    merged, unwrapped = _merged_and_unwrapped(trained)
    at_first, _ = run(_output_and_gradient, adapted, inputs)
    later, gradient = run(_output_and_gradient, trained, inputs)
    result = Everything(base, adapted, trained, merged, unwrapped, gradient)
    every_output = (run(base, *inputs), at_first, later, run(merged, *inputs))
    outputs = [[np.asarray(y) for y in jax.tree.leaves(output)] for output in every_output]
    for y, y_first, y_later, y_merged in zip(*outputs, strict=True):
        scale = np.max(np.abs(y))
        np.testing.assert_allclose(y_first, y, rtol=1e-4, atol=1e-4 * scale)
        np.testing.assert_allclose(
            y_merged, y_later, rtol=1e-3, atol=1e-4 * np.max(np.abs(y_later))
        )
        assert np.max(np.abs(y_later - y)) > 1e-3 * scale
    assert same_form(result.merged, result.base) and same_form(result.unwrapped, result.base)
    for restored, array in zip(*map(jax.tree.leaves, (result.unwrapped, result.base)), strict=True):
        if eqx.is_inexact_array(array):
            np.testing.assert_allclose(restored, array, rtol=1e-4, atol=1e-5)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(result.gradient))
    return result


def same_form(a: Any, b: Any) -> bool:
    """Whether two models have the same structure, classes, shapes and dtypes."""
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        x.shape == y.shape and x.dtype == y.dtype
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
        if eqx.is_array(x) or eqx.is_array(y)
    )
