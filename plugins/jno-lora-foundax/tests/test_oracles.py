"""Every method on foundax's layers in double precision: its law, loops, and every derivative.

Nothing is shared with what is tested but the adapter's arrays (of VeRA also the two matrices that
it draws), so that the bounds can be those of double precision. All these adapters call the layer
with the law's weight in it, so there is one way to differentiate.
"""

import functools
from types import SimpleNamespace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from foundax_cases import (
    CONV_TRANSPOSES,
    CONVS,
    METHODS,
    SUBSAMPLED,
    assert_close,
    central_difference,
    doubled,
    filled,
    perturbed,
    run,
)
from foundax_cases.laws import law, triplets
from foundax_cases.maps import (
    convolution,
    kernel_of,
    matrix_of,
    subsampled,
    transposed_convolution,
)

import jno_lora_foundax as package
from jno.lora import lora_trainable_filter

RANK, ALPHA = 3, 2.0
VALUE, GRADIENT = 1e-12, 1e-7

# Of each kind: its layers, the one that every method is tried on, and what such a layer computes.
KINDS = {
    "ChannelLastConv": (CONVS, "Conv2d", convolution),
    "ChannelLastConvTranspose": (CONV_TRANSPOSES, "ConvTranspose2d", transposed_convolution),
    "SubsampledLinear": (SUBSAMPLED, "subsample_in", subsampled),
}
# On the other layers a method with a law of its own for each row, and one without.
CASES = [
    (method, kind, name)
    for kind, (layers, main, _) in KINDS.items()
    for name in layers
    for method in (METHODS if name == main else ["LoRA", "DoRA"])
]
every_case = pytest.mark.parametrize(
    ("method", "kind", "name"), [pytest.param(*c, id=f"{c[0]}{c[1]}-{c[2]}") for c in CASES]
)


@eqx.filter_jit
def computed(wrapper, x, labels, weights):
    """Output, merged weight, and the gradients of `sum(weights * sin(y))`."""
    trainable, frozen = eqx.partition(wrapper, lora_trainable_filter(wrapper))

    def loss(trainable, x):
        y = eqx.combine(trainable, frozen)(x, *labels)
        return jnp.sum(weights * jnp.sin(y)), y

    (by_arrays, by_x), y = jax.grad(loss, (0, 1), has_aux=True)(trainable, x)
    by_name = {name: getattr(by_arrays, name) for name in type(wrapper).adapter_fields}
    return y, wrapper.merge().weight, {**by_name, "x": by_x}


@functools.lru_cache(maxsize=len(CASES))  # three tests want each
def both(method, kind, name):
    """What JAX computes and, as functions of the arrays, what NumPy does."""
    layers, _, apply = KINDS[kind]
    key = jax.random.key(1)
    base, (x, *labels) = filled(layers[name].make, key), layers[name].data(key)
    with jax.enable_x64(True):
        base, x = doubled((base, x))
        cls = getattr(package, method + kind)
        wrapper = perturbed(cls(base, RANK, ALPHA, key=key))
        y_shape = eqx.filter_eval_shape(functools.partial(run, base), x, *labels).shape
        weights = np.random.default_rng(3).normal(size=y_shape)
        result = jax.device_get(run(computed, wrapper, x, labels, jnp.asarray(weights)))
        arrays = fields_of(wrapper)
        if method == "VeRA":
            matrix = jnp.zeros((layers[name].outputs, layers[name].inputs))
            arrays |= dict(zip("AB", map(np.asarray, wrapper.projections(matrix)), strict=True))
    # Of the layer's own layout and back.
    is_matrix = kind == "SubsampledLinear"
    read = (lambda weight: weight) if is_matrix else matrix_of
    write = (lambda weight: weight) if is_matrix else (lambda W: kernel_of(W, base.weight.shape))
    W = read(np.asarray(base.weight))
    if method in ("PiSSA", "MiLoRA"):
        arrays["residual"] = read(np.asarray(wrapper.base.weight))
    arrays["x"] = np.asarray(x)

    def weight(**changed):
        fields = SimpleNamespace(**{**arrays, **changed})
        rank = min(RANK, *W.shape)
        return write(law(method, fields, W, rank, ALPHA))

    def output(**changed):
        x = changed.get("x", arrays["x"])
        return apply(base, weight(**changed), x, *map(np.asarray, labels))

    def loss(**changed):
        return np.sum(weights * np.sin(output(**changed)))

    return result, arrays, W, weight, output, loss


def fields_of(wrapper):
    skip = ("base", "rank", "alpha", "multiplier")
    return {name: np.asarray(a) for name, a in vars(wrapper).items() if name not in skip}


@every_case
def test_the_merged_weight_is_the_law_to_double_precision(method, kind, name):
    (_, merged, _), arrays, W, weight, *_ = both(method, kind, name)
    assert merged.dtype == np.float64
    assert_close(merged, weight(), VALUE)
    if method in ("PiSSA", "MiLoRA"):  # by the decomposition of the weight itself
        assert_close(merged, weight(residual=None), VALUE)
    if method == "LoRAXS":
        assert_close(arrays["lora_B"] @ arrays["lora_A"], triplets(W, slice(0, RANK)), VALUE)


@every_case
def test_the_output_is_that_of_loops_to_double_precision(method, kind, name):
    (y, *_), _, _, _, output, _ = both(method, kind, name)
    assert y.dtype == np.float64
    assert_close(y, output(), VALUE)


@every_case
def test_every_derivative_is_a_central_difference_of_the_loops(method, kind, name):
    (*_, gradients), arrays, W, *_, loss = both(method, kind, name)
    constant = {}
    if method == "DoRA":  # takes the row norm for constant (section 4.3)
        V = W + ALPHA / RANK * arrays["lora_B"] @ arrays["lora_A"]
        constant["norm"] = np.linalg.norm(V, axis=1)
    for field, gradient in gradients.items():

        def changed(array, field=field):
            return loss(**constant, **{field: array})

        assert_close(gradient, central_difference(changed, arrays[field]), GRADIENT)


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, (layers, *_) in KINDS.items() for name in layers]
)
def test_the_loops_are_what_foundax_computes(kind, name):
    # The oracle must not be wrong in the same way: it is right for layers without adapters.
    layers, _, apply = KINDS[kind]
    key = jax.random.key(2)
    with jax.enable_x64(True):
        base, inputs = doubled((filled(layers[name].make, key), layers[name].data(key)))
        expected = np.asarray(run(base, *inputs))
    actual = apply(base, np.asarray(base.weight), *map(np.asarray, inputs))
    assert_close(actual, expected, VALUE)
