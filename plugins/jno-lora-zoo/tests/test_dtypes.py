"""Half precision, double precision, and adapters in another precision than their layer."""

import contextlib
import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo_cases import (
    ALL_METHODS,
    Adapter,
    adapters,
    assert_close,
    build,
    case,
    cast_floats,
    dealt,
    equal_leaves,
    law_of,
    on_cases,
    pairs,
    perturb,
)
from zoo_cases.layers import matrix_of, with_matrix

from jno.lora import extract_adapters, load_adapters, merge_lora, save_adapters, swap_adapters


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


@adapters(linear=("plain", "duck"))
def test_half_precision_merges_are_the_law_rounded_once_and_layers_compute_them(adapter, base):
    dtype = jnp.bfloat16
    base = in_dtype(base, dtype)
    wrapper, inputs = perturb(build(adapter, base)), base.arguments(dtype)
    merged = wrapper.merge()
    assert merged.weight.dtype == dtype
    # PiSSA's residual is in the layer's dtype: that rounding is not the merge's.
    law = law_of(adapter, wrapper, base, residual=matrix_of(wrapper.base))
    error = np.abs(matrix_of(merged) - law)
    # Half a unit in the last place, and what float32 lost before.
    bound = 0.5 * float(jnp.finfo(dtype).eps) * np.abs(law) + 1e-5 * np.max(np.abs(law))
    assert (error <= bound).all()
    actual = wrapper(*inputs)
    assert actual.dtype == dtype
    assert_close(actual, merged(*inputs), 2 * rounding(wrapper, base, inputs), scale=1.0)


@adapters(linear=("duck",))
def test_adapter_dtype_is_that_of_the_adapter_only(adapter, base):
    wrapper = perturb(build(adapter, base, adapter_dtype=jnp.float16))
    assert {leaf.dtype for leaf in outside_base(wrapper)} == {jnp.dtype(jnp.float16)}
    merged, inputs = wrapper.merge(), base.arguments()
    assert wrapper(*inputs).dtype == merged.weight.dtype == jnp.float32
    law = law_of(adapter, wrapper, base, residual=matrix_of(wrapper.base))
    assert_close(matrix_of(merged), law, 1e-5)
    assert_close(wrapper(*inputs), with_matrix(base.layer, law)(*inputs), 2e-5)


@pytest.mark.parametrize("given", ["f32", jnp.int8, 3, "complex64"])
def test_an_adapter_dtype_in_which_nothing_could_train_is_refused(given):
    with pytest.raises(ValueError, match="`adapter_dtype` must be a floating dtype") as caught:
        build(Adapter("LoRA", "Linear"), case("Linear", "plain"), adapter_dtype=given)
    assert str(caught.value).endswith(f"but is {given!r}")


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16], ids=lambda d: d.__name__)
@on_cases(dealt(pairs(*ALL_METHODS, Linear=("plain",), Conv=("plain",))))
def test_lower_precision_is_kept_where_double_is_the_default(adapter, base, dtype):
    base = in_dtype(base, dtype)

    def use(layer, x):
        wrapper = build(adapter, layer)
        return outside_base(wrapper), wrapper(x), wrapper.merge().weight

    with jax.enable_x64(True):
        added, output, weight = eqx.filter_eval_shape(use, base.layer, *base.arguments(dtype))
    assert {leaf.dtype for leaf in added} == {jnp.dtype(jnp.float32)}
    assert output.dtype == weight.dtype == dtype


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=["bfloat16", "float16"])
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


MOVES = [
    ("bfloat16", "float32"),
    ("float32", "bfloat16"),
    ("float64", "float32"),
    ("float32", "float64"),
]
# The error that the law may have, relative to the largest entry.
LOST = {"float32": 1e-6, "float64": 1e-12, "bfloat16": 1e-5}


@pytest.mark.parametrize(("made_for", "dtype"), MOVES)
@adapters("LoRA", "PiSSA", "VeRA", conv=())
def test_an_adapter_follows_its_law_on_a_layer_of_another_precision(
    adapter, base, made_for, dtype, tmp_path
):
    file = tmp_path / "adapters.safetensors"
    with jax.enable_x64(True) if "float64" in (made_for, dtype) else contextlib.nullcontext():
        old, new = ([cast_floats(base.layer, name)] for name in (made_for, dtype))
        trained = [perturb(build(adapter, old[0], rank=base.rank))]
        save_adapters(trained, file)
        loaded = load_adapters(new, file)
        # No bit of the adapter changes, and the way back leads to where it began.
        assert equal_leaves(loaded[0].state(), trained[0].state())
        assert equal_leaves(swap_adapters(new, extract_adapters(trained)), loaded)
        save_adapters(loaded, file)
        assert equal_leaves(load_adapters(old, file), trained)

        (merged,), (x,) = merge_lora(loaded), base.arguments(dtype)
        assert loaded[0](x).dtype == merged.weight.dtype == dtype
        on_new = dataclasses.replace(base, layer=new[0])
        fields = {}
        if adapter.method == "PiSSA":  # whose update is known exactly
            B, A = (np.asarray(trained[0].state()[f"initial_{n}"], np.float64) for n in "BA")
            residual = on_new.matrix() - 3.0 / trained[0].rank * B @ A
            rounding = float(jnp.finfo(dtype).eps) if dtype == "bfloat16" else 0
            fields["residual"] = matrix_of(loaded[0].base)
            assert_close(fields["residual"], residual, LOST[dtype] + rounding)
        law = law_of(adapter, loaded[0], on_new, **fields)
        rounded = 0.5 * float(jnp.finfo(dtype).eps) * np.abs(law) if dtype == "bfloat16" else 0
        error = np.abs(matrix_of(merged) - law)
    assert (error <= rounded + LOST[dtype] * np.max(np.abs(law))).all()
