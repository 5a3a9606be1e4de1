"""Values and gradients in double precision, against NumPy: the law, and loops for the layer.

The other tests compare in float32, with JAX's own layers, or along one direction. Here nothing is
shared with what is tested but the adapter's arrays (of VeRA also the two matrices that it draws),
so that the bounds can be those of double precision, and every single derivative is compared with a
central difference: in the adapter's arrays and in the input, of the layer's way to compute its
output and of the merged layer's.
"""

import dataclasses
import functools
from types import SimpleNamespace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from zoo_cases import (
    adapters,
    assert_close,
    build,
    case,
    cast_floats,
    fields_of,
    reference,
)
from zoo_cases.layers import matrix_of
from zoo_cases.maps import convolution, linear

from jno.lora import lora_trainable_filter

ALPHA = 3.0
# Of a central difference of step h: h^2 by the third derivative, and the rounding of the
# values over h. Both are about 1e-10 of the values at this one.
H = 1e-5
GRADIENT = 1e-7
VALUE = 1e-12

# Linear with a bias, without one, and with outputs that OFT's and LoKr's blocks do not divide;
# convolutions with every setting there is, in three dimensions and with groups cut by blocks. How
# they pad is up to the layer itself.
everywhere = adapters(
    linear=("plain", "no_bias", "rank_above_sizes"),
    conv=("strided", "circular", "groups_straddled", "volume"),
)


@dataclasses.dataclass(frozen=True)
class Result:
    """What an adapted layer computes: output, merged weight, and gradients of a loss."""

    output: np.ndarray
    weight: np.ndarray
    gradients: dict[str, np.ndarray]  # by field, and "x"
    merged_gradients: dict[str, np.ndarray]


def doubled(base):
    return dataclasses.replace(base, layer=cast_floats(base.layer, jnp.float64))


def moved(wrapper):
    """With every trained field at random, in double precision."""
    rng = np.random.default_rng(0)
    names = type(wrapper).adapter_fields
    arrays = [getattr(wrapper, name) for name in names]
    new = [x + jnp.asarray(0.4 * rng.normal(size=x.shape), x.dtype) for x in arrays]
    return eqx.tree_at(lambda w: [getattr(w, name) for name in names], wrapper, new)


def loss_weights(shape):
    return np.random.default_rng(3).normal(size=shape)


@eqx.filter_jit
def computed(wrapper, x, weights):
    """Output, merged weight, and the gradients of `sum(weights * sin(y))` by either way."""
    trainable, frozen = eqx.partition(wrapper, lora_trainable_filter(wrapper))

    def loss(trainable, x, merged):
        wrapper = eqx.combine(trainable, frozen)
        y = (wrapper.merge() if merged else wrapper)(x)
        return jnp.sum(weights * jnp.sin(y)), y

    by_layer, y = jax.grad(lambda t, x: loss(t, x, False), (0, 1), has_aux=True)(trainable, x)
    by_merged, _ = jax.grad(lambda t, x: loss(t, x, True), (0, 1), has_aux=True)(trainable, x)
    return y, wrapper.merge().weight, by_layer, by_merged


def both(adapter, base):
    """What JAX computes and, as a function of the arrays, what NumPy does."""
    return _both(adapter, base.name)


@functools.lru_cache(maxsize=8)  # the tests of one case follow each other
def _both(adapter, name):
    with jax.enable_x64(True):
        base = doubled(case(adapter.kind, name))
        wrapper = moved(build(adapter, base, alpha=ALPHA))
        (x,) = base.arguments(jnp.float64)
        weights = loss_weights(eqx.filter_eval_shape(wrapper, x).shape)
        y, weight, *gradients = jax.device_get(computed(wrapper, x, jnp.asarray(weights)))
        assert y.dtype == weight.dtype == np.float64
        arrays = vars(fields_of(wrapper))
        arrays = {name: array for name, array in arrays.items() if name != "multiplier"}
        if adapter.method == "VeRA":
            drawn = wrapper.projections(jnp.zeros(base.matrix().shape))
            arrays["A"], arrays["B"] = map(np.asarray, drawn)
        if adapter.method in ("PiSSA", "MiLoRA"):
            arrays["residual"] = matrix_of(wrapper.base)
        layer, bias = base.layer, base.layer.bias
        W, bias = base.matrix(), None if bias is None else np.asarray(bias)

    def law(**changed):
        fields = SimpleNamespace(**{**arrays, **changed})
        return reference(adapter.method, fields, W, base.rank, ALPHA)

    def output(x, **changed):
        if adapter.kind == "Linear":
            return linear(law(**changed), bias, x)
        return convolution(layer, law(**changed), bias, x)

    names = adapter.cls.adapter_fields
    by_name = [
        {**{name: getattr(fields, name) for name in names}, "x": of_x} for fields, of_x in gradients
    ]
    result = Result(y, weight.reshape(len(weight), -1), *by_name)
    return result, arrays, np.asarray(x), law, output, weights


@everywhere
def test_the_merged_weight_is_the_law_to_double_precision(adapter, base):
    result, arrays, _, law, *_ = both(adapter, base)
    assert_close(result.weight, law(), VALUE)
    if adapter.method in ("PiSSA", "MiLoRA"):  # by the decomposition of the weight itself
        fields = SimpleNamespace(**arrays)
        del fields.residual
        expected = reference(adapter.method, fields, base.matrix(), base.rank, ALPHA)
        assert_close(result.weight, expected, VALUE)


@everywhere
def test_the_output_is_that_of_loops_to_double_precision(adapter, base):
    result, _, x, _, output, _ = both(adapter, base)
    assert_close(result.output, output(x), VALUE)


@everywhere
def test_every_derivative_is_a_central_difference_of_the_loops(adapter, base):
    result, arrays, x, law, output, weights = both(adapter, base)
    constant = {}
    if adapter.method == "DoRA":  # takes the row norm for constant (section 4.3)
        V = law(magnitude=np.ones(len(result.weight)), norm=np.ones(len(result.weight)))
        constant["norm"] = np.linalg.norm(V, axis=1)

    def loss(**changed):
        at = changed.pop("x", x)
        return np.sum(weights * np.sin(output(at, **{**constant, **changed})))

    for name, gradient in result.gradients.items():
        array = x if name == "x" else arrays[name]
        expected = np.empty(array.shape)
        for place in np.ndindex(array.shape):
            up, down = array.copy(), array.copy()
            up[place] += H
            down[place] -= H
            expected[place] = (loss(**{name: up}) - loss(**{name: down})) / (2 * H)
        assert_close(gradient, expected, GRADIENT)
        assert_close(result.merged_gradients[name], expected, GRADIENT)


def test_the_loops_are_what_equinox_computes():
    # The oracle must not be wrong in the same way: it is right for layers without adapters.
    for name in ("strided", "circular", "reflect", "replicate", "groups_straddled", "volume"):
        with jax.enable_x64(True):
            base = doubled(case("Conv", name))
            (x,) = base.arguments(jnp.float64)
            expected = np.asarray(base.layer(x))
            bias = None if base.layer.bias is None else np.asarray(base.layer.bias)
            actual = convolution(base.layer, base.matrix(), bias, np.asarray(x))
        assert_close(actual, expected, VALUE)
