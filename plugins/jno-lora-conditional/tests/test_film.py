"""A scale and a shift for each output, beside the adapters: `Conditional(..., film=True)`."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from foundax.architectures.fno import SpectralConv1d

from jno.lora import Net, SelectionError
from jno_lora_conditional import Conditional, Powers, at, load_conditional, merge, save_conditional
from jno_lora_conditional.testing import check_conditional, trained_at_random

KEY = jax.random.key(0)
X = jnp.array([0.3, -0.5, 0.8, 1.1])


def trained(model, wrapper="lora", film=True):
    net = Net(model).freeze().lora(rank=2, wrapper=wrapper)
    return trained_at_random(Conditional(net, Powers(source=0.5, degree=2), film=film))


def test_the_law():
    """`W' = (1 + phi gamma)(W + s B A)` and `b' = (1 + phi gamma) b + phi beta`."""
    layer = eqx.nn.Linear(4, 3, key=KEY)
    conditional = trained(layer)
    phi = np.array([0.4, 0.16], np.float32)  # at 0.9
    adapter, film = conditional.model, conditional.film[""]
    B = np.tensordot(phi, conditional.directions[""]["lora_B"], 1)
    scale, shift = (np.tensordot(phi, d, 1) for d in (1.0 * film.scale, film.shift))
    W = (1 + scale)[:, None] * (layer.weight + B @ adapter.lora_A)
    merged = merge(conditional, 0.9)
    np.testing.assert_allclose(merged.weight, W, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(merged.bias, (1 + scale) * layer.bias + shift, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(at(conditional, 0.9)(X), merged(X), rtol=1e-5, atol=1e-6)
    assert eqx.tree_equal(merge(conditional, 0.5), layer)


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (eqx.nn.Linear(4, 3, use_bias=False, key=KEY), X),
        (eqx.nn.Linear(4, "scalar", key=KEY), X),
        (eqx.nn.Conv1d(2, 3, 3, key=KEY), jnp.ones((2, 5))),
        (eqx.nn.MLP(4, 4, 4, 1, key=KEY), X),
    ],
    ids=["without a bias", "one output", "convolution", "several layers"],
)
def test_the_laws_of_conditionals(layer, x):
    wrapper = "dora" if isinstance(layer, eqx.nn.MLP) else "lora"
    rounding = 1e-6 if wrapper == "dora" else None
    checked = check_conditional(wrapper, layer, x, film=True, rounding=rounding)
    has_bias = getattr(layer, "bias", True) is not None
    assert all((film.shift is not None) == has_bias for film in checked.film.values())


def test_a_small_scale_counts_in_half_precision():
    layer = eqx.nn.Linear(4, 3, use_bias=False, dtype=jnp.bfloat16, key=KEY)
    conditional = trained(layer)
    films = eqx.tree_at(lambda f: f[""].scale, conditional.film, jnp.full((2, 3), 0.003))
    conditional = eqx.tree_at(lambda c: c.film, conditional, films)
    x = jnp.linspace(-1, 1, 4000).reshape(1000, 4).astype(jnp.bfloat16)
    scaled, plain = (
        jax.vmap(at(eqx.tree_at(lambda c: c.film, conditional, film), 1.5))(x).astype(float)
        for film in (films, {})
    )
    assert jnp.sum(jnp.abs(scaled)) / jnp.sum(jnp.abs(plain)) == pytest.approx(1.006, abs=1e-3)


def test_spectral_weights_get_a_scale_for_each_channel():
    layer = SpectralConv1d(2, 3, 2, key=KEY)
    x = jnp.outer(jnp.sin(jnp.arange(6.0)), jnp.array([1.0, -0.5]))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        conditional = trained(layer, "cp")
        without = eqx.tree_at(lambda c: c.film, conditional, {})
        scale = 1 + 0.4 * conditional.film[""].scale[0] + 0.16 * conditional.film[""].scale[1]
        expected = scale * at(without, 0.9)(x)  # channels last
        np.testing.assert_allclose(at(conditional, 0.9)(x), expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(merge(conditional, 0.9)(x), expected, rtol=1e-4, atol=1e-5)


def test_the_summary_the_trainable_arrays_and_a_file_hold_scales_and_shifts(tmp_path):
    layer = eqx.nn.Linear(4, 3, key=KEY)
    conditional = trained(layer)
    (row,) = conditional.summary().rows
    assert row.moving == ("lora_B", "scale", "shift") and row.shared == ("lora_A",)
    assert row.trainable == 2 * 4 + 2 * 3 * 2 + 2 * 2 * 3
    assert jax.tree.leaves(conditional.partition()[1].film) == []
    save_conditional(conditional, tmp_path / "c.safetensors")
    loaded = load_conditional(tmp_path / "c.safetensors", layer)
    assert eqx.tree_equal(loaded.film, conditional.film)
    np.testing.assert_array_equal(at(loaded, 0.9)(X), at(conditional, 0.9)(X))


def test_a_layer_with_several_matrices_has_none():
    class Model(eqx.Module):
        attention: eqx.nn.MultiheadAttention
        last: eqx.nn.Linear

    model = Model(eqx.nn.MultiheadAttention(2, 4, key=KEY), eqx.nn.Linear(4, 2, key=KEY))
    net = Net(model).freeze().lora(rank=2, wrapper="lora-attention", target="attention$")
    with pytest.raises(SelectionError, match="film=True"):
        Conditional(net, Powers(source=0.5), film=True)
    net.lora(rank=2, target="last")
    assert Conditional(net, Powers(source=0.5), film=True).film.keys() == {"last"}


def test_a_value_for_each_example_builds_no_weight_for_each_example():
    conditional = trained(eqx.nn.Linear(64, 64, key=KEY))
    zs, xs = jnp.linspace(0.1, 1, 32), jnp.ones((32, 64))
    program = jax.make_jaxpr(jax.vmap(lambda z, x: at(conditional, z)(x)))(zs, xs)
    sizes = [v.aval.size for e in program.jaxpr.eqns for v in e.outvars]
    assert max(sizes) < 32 * 64 * 64
