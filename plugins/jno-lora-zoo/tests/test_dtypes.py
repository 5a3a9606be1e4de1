"""Half precision, double precision, and adapters in another precision than their layer."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo_cases import (
    ADAPTERS,
    adapters,
    assert_close,
    build,
    case,
    cast_floats,
    each,
    law_of,
    perturb,
)
from zoo_cases.layers import matrix_of, with_matrix

HALVES = pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=["bfloat16", "float16"])
LAYERS = {"linear": ("plain", "duck"), "conv": ("plain", "duck")}


def in_dtype(base, dtype):
    return dataclasses.replace(base, layer=cast_floats(base.layer, dtype))


def outside_base(wrapper):
    """The floating arrays that the adapter adds to its layer."""
    added = jax.tree.leaves(eqx.tree_at(lambda w: w.base, wrapper, None))
    return [leaf for leaf in added if jnp.issubdtype(leaf.dtype, jnp.floating)]


def rounding(wrapper, base, inputs):
    """One rounding in the layer's dtype of the largest sum of magnitudes in an output.

    The bounds below are multiples of it: a product rounds its terms, its sum, the sum's addition
    to the low-rank part and to the bias once each, and a low-rank product does so twice.
    """
    dtype = base.layer.weight.dtype
    magnitudes = np.abs(matrix_of(wrapper.base)) + np.abs(matrix_of(wrapper.merge()))
    layer = jax.tree.map(jnp.abs, with_matrix(cast_floats(base.layer, jnp.float32), magnitudes))
    largest = jnp.max(layer(*(jnp.abs(x.astype(jnp.float32)) for x in inputs)))
    return float(jnp.finfo(dtype).eps) * float(largest)


@HALVES
@adapters(**LAYERS)
def test_half_precision_merges_are_the_law_rounded_once(adapter, base, dtype):
    base = in_dtype(base, dtype)
    wrapper = perturb(build(adapter, base))
    merged = wrapper.merge()
    assert merged.weight.dtype == dtype
    # PiSSA's and MiLoRA's residual is in the layer's dtype: that rounding is not the merge's.
    law = law_of(adapter, wrapper, base, residual=matrix_of(wrapper.base))
    error = np.abs(matrix_of(merged) - law)
    # Half a unit in the last place, and what float32 lost before.
    bound = 0.5 * float(jnp.finfo(dtype).eps) * np.abs(law) + 1e-5 * np.max(np.abs(law))
    assert (error <= bound).all()


@HALVES
@adapters(**LAYERS)
def test_half_precision_layers_compute_their_merge_within_its_rounding(adapter, base, dtype):
    base = in_dtype(base, dtype)
    inputs = base.arguments(dtype)
    wrapper = perturb(build(adapter, base))
    actual, merged = wrapper(*inputs), wrapper.merge()(*inputs)
    assert actual.dtype == dtype
    assert_close(actual, merged, 2 * rounding(wrapper, base, inputs), scale=1.0)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@adapters(**LAYERS)
def test_adapter_dtype_is_that_of_the_adapter_only(adapter, base, dtype):
    base = in_dtype(base, dtype)
    wrapper = perturb(build(adapter, base, adapter_dtype=jnp.float16))
    assert {leaf.dtype for leaf in outside_base(wrapper)} == {jnp.dtype(jnp.float16)}
    assert wrapper(*base.arguments(dtype)).dtype == wrapper.merge().weight.dtype == dtype
    if dtype == jnp.float32:
        law = law_of(adapter, wrapper, base, residual=matrix_of(wrapper.base))
        assert_close(matrix_of(wrapper.merge()), law, 1e-5)
        actual, expected = wrapper(*base.arguments()), with_matrix(base.layer, law)
        assert_close(actual, expected(*base.arguments()), 2e-5)


@pytest.mark.parametrize("given", ["f32", "int8", jnp.int8, 3, "complex64"])
@pytest.mark.parametrize(
    "adapter", [a for a in ADAPTERS if a.kind == "Linear"], ids=lambda a: a.name
)
def test_an_adapter_dtype_in_which_nothing_could_train_is_refused(adapter, given):
    with pytest.raises(ValueError, match="`adapter_dtype` must be a floating dtype") as caught:
        build(adapter, case("Linear", "plain"), adapter_dtype=given)
    assert str(caught.value).endswith(f"but is {given!r}")


@pytest.mark.parametrize(
    "dtype", [jnp.float32, jnp.bfloat16, jnp.float16], ids=lambda d: d.__name__
)
@each()
def test_lower_precision_is_kept_where_double_is_the_default(adapter, dtype):
    base = in_dtype(case(adapter.kind, "plain"), dtype)

    def use(layer, x):
        wrapper = build(adapter, layer)
        return outside_base(wrapper), wrapper(x), wrapper.merge().weight

    with jax.enable_x64(True):
        added, output, weight = eqx.filter_eval_shape(use, base.layer, *base.arguments(dtype))
    assert {leaf.dtype for leaf in added} == {jnp.dtype(jnp.float32)}
    assert output.dtype == weight.dtype == dtype


@HALVES
@adapters("IA3", "DoRA")
def test_a_factor_close_to_one_is_not_rounded_to_one(adapter, base, dtype):
    wrapper = build(adapter, in_dtype(base, dtype))
    field = {"IA3": "scale", "DoRA": "magnitude"}[adapter.method]
    moved = eqx.tree_at(lambda w: getattr(w, field), wrapper, 1.0035 * getattr(wrapper, field))
    (x,) = base.arguments(dtype)
    xs = jax.random.normal(jax.random.key(5), (512, *x.shape)).astype(dtype)

    def size(wrapper):
        layer = eqx.tree_at(lambda w: w.base.bias, wrapper, replace_fn=jnp.zeros_like)
        return np.mean(np.abs(np.asarray(jax.vmap(layer)(xs), np.float64)))

    assert abs(size(moved) / size(wrapper) - 1.0035) < 2e-3


@adapters(**LAYERS)
def test_numpy_weights_in_double_precision_are_computed_with_as_jax_does(adapter, base):
    weight = np.asarray(base.layer.weight, np.float64)
    wide = dataclasses.replace(base, layer=eqx.tree_at(lambda m: m.weight, base.layer, weight))
    one, other = (perturb(build(adapter, layer)) for layer in (wide, base))
    (x,) = base.arguments()
    assert_close(one(x), other(x), 1e-5)
    assert_close(matrix_of(one.merge()), matrix_of(other.merge()), 1e-5)
