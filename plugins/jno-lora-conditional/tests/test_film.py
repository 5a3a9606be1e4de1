"""A scale and a shift for each output, beside the adapters: `Conditional(..., film=True)`."""

import json
import pickle
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from click.testing import CliRunner
from foundax.architectures.fno import SpectralConv1d

from jno.lora import (
    CheckpointError,
    Net,
    PluginError,
    SelectionError,
    citation,
    extract_adapters,
    load_adapters,
    lora_trainable_filter,
    merge_lora,
    save_adapters,
    swap_adapters,
    unwrap_lora,
)
from jno.lora._commands import cli
from jno.lora.extending import default_registry
from jno_lora_combine import stack_adapters, sum_adapters, take_adapters
from jno_lora_conditional import Conditional, Powers, at, load_conditional, merge, save_conditional
from jno_lora_conditional.testing import check_conditional, trained_at_random
from jno_lora_quantized import quantize

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


# --- at one value, it is an ordinary adapter


LAYER = eqx.nn.Linear(4, 3, key=KEY)


def at_one_value(wrapper="lora", model=LAYER, **options):
    conditional = Conditional(
        Net(model).freeze().lora(rank=2, wrapper=wrapper), Powers(source=0.5), film=True, **options
    )
    return at(trained_at_random(conditional), 0.9)


def trainable_size(model):
    return sum(x.size for x in jax.tree.leaves(eqx.filter(model, lora_trainable_filter(model))))


@pytest.mark.parametrize("wrapper", ["lora", "dora", "pissa", "lora-fa", "vera-shared"])
def test_a_file_and_a_set_hold_it(wrapper, tmp_path):
    model = at_one_value(wrapper, exact=wrapper != "pissa")
    save_adapters(model, tmp_path / "a.safetensors", base_values=LAYER)
    loaded = load_adapters(LAYER, tmp_path / "a.safetensors", strict="values")
    assert eqx.tree_equal(loaded, swap_adapters(LAYER, extract_adapters(model)))
    assert type(loaded) is type(model)
    np.testing.assert_allclose(loaded(X), model(X), rtol=1e-6)
    np.testing.assert_allclose(merge_lora(loaded)(X), model(X), rtol=1e-5)
    np.testing.assert_allclose(unwrap_lora(loaded).weight, LAYER.weight, atol=1e-6)
    # What the method freezes stays frozen: a scale and a shift train beside it.
    plain = Net(LAYER).freeze().lora(rank=2, wrapper=wrapper).module
    assert trainable_size(loaded) == trainable_size(plain) + 3 + 3
    assert "Visual Reasoning" in citation(loaded)


def test_the_layer_is_known_so_that_another_base_is_noticed(tmp_path):
    save_adapters(at_one_value(), tmp_path / "a.safetensors")
    other = eqx.nn.Linear(4, 3, key=jax.random.key(1))
    with pytest.raises(CheckpointError, match="other values"):
        load_adapters(other, tmp_path / "a.safetensors", strict="values")


def inspected(*arguments):
    command = ["inspect", *map(str, arguments)]
    return CliRunner().invoke(cli, command, env={"COLUMNS": "200"}).output


@pytest.mark.slow
def test_another_process_reads_a_file_and_the_command_line_shows_it(tmp_path):
    path = tmp_path / "a.safetensors"
    plain = extract_adapters(at(trained(LAYER, film=False), 0.9))
    summed = sum_adapters(LAYER, {"a": extract_adapters(at_one_value()), "b": plain})
    save_adapters(summed, path)
    code = (
        "import equinox as eqx, jax, jax.numpy as jnp\n"
        "from jno.lora import load_adapters\n"
        "layer = eqx.nn.Linear(4, 3, key=jax.random.key(0))\n"
        f"print(load_adapters(layer, {str(path)!r})(jnp.array({X.tolist()})).tolist())\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    np.testing.assert_allclose(json.loads(run.stdout), summed(X), rtol=1e-6)
    (described,) = json.loads(inspected("--json", path))["adapters"]
    assert described["distribution"] == "jno-lora-combine"
    assert described["members"]["a"]["members"]["adapter"]["wrapper"] == "LoRALinear"
    save_adapters(at_one_value(), path)
    shown = inspected(path)
    assert "Modulated(adapter: LoRALinear)" in shown
    assert "jno-lora-conditional, jno-lora-zoo" in shown


def test_a_file_that_names_two_adapters_is_refused():
    cls = default_registry().provided("jno-lora-conditional", "Modulated").cls
    (member,) = type(at_one_value()).members
    assert cls.of_members((member,), False) is type(at_one_value())
    with pytest.raises(PluginError, match="made of one adapter"):
        cls.of_members((member, member), False)


def test_named_sets_and_sums_hold_it():
    model, plain = at_one_value(), extract_adapters(at(trained(LAYER, film=False), 0.9))
    own, other = merge_lora(model), merge_lora(swap_adapters(LAYER, plain))
    net = Net(LAYER).add_adapter("a", extract_adapters(model)).add_adapter("b", plain)
    np.testing.assert_array_equal(net.activate("a")(X), model(X))
    np.testing.assert_array_equal(net.activate("b").activate("a")(X), model(X))
    net.activate("a", "b", weights={"a": 0.5, "b": 2.0})
    weight = LAYER.weight + 0.5 * (own.weight - LAYER.weight) + 2 * (other.weight - LAYER.weight)
    bias = LAYER.bias + 0.5 * (own.bias - LAYER.bias)
    np.testing.assert_allclose(net(X), weight @ X + bias, rtol=1e-5)
    np.testing.assert_allclose(net.merge().module.weight, weight, rtol=1e-5)


def test_stacked_and_pickled_sets_hold_it():
    sets = [extract_adapters(at(trained(LAYER), z)) for z in (0.9, 1.1)]
    stacked = stack_adapters(sets)
    both = eqx.filter_vmap(lambda of_one: swap_adapters(LAYER, of_one)(X))(stacked)
    for n, y in enumerate(both):
        np.testing.assert_allclose(swap_adapters(LAYER, sets[n])(X), y, rtol=1e-5)
        assert eqx.tree_equal(take_adapters(stacked, n), sets[n])
    assert eqx.tree_equal(pickle.loads(pickle.dumps(sets[0])), sets[0])


def scanned(stack, x):
    arrays, rest = eqx.partition(stack, eqx.is_array)
    return jax.lax.scan(lambda x, own: (jnp.tanh(eqx.combine(own, rest)(x)), None), x, arrays)[0]


@pytest.mark.parametrize("wrapper", ["lora", "vera-shared"])
def test_a_stack_of_layers_holds_it(wrapper, tmp_path):
    keys = jax.random.split(KEY, 3)
    stack = eqx.filter_vmap(lambda key: eqx.nn.Linear(4, 4, key=key))(keys)
    model = at_one_value(wrapper, stack)
    save_adapters(model, tmp_path / "a.safetensors")
    loaded = load_adapters(stack, tmp_path / "a.safetensors", strict="values")
    np.testing.assert_array_equal(scanned(loaded, X), scanned(model, X))
    np.testing.assert_allclose(scanned(merge_lora(loaded), X), scanned(model, X), rtol=1e-5)


def test_a_quantised_layer_holds_it(tmp_path):
    layer = quantize(LAYER)
    model = at_one_value(model=layer)
    save_adapters(model, tmp_path / "a.safetensors")
    np.testing.assert_array_equal(load_adapters(layer, tmp_path / "a.safetensors")(X), model(X))
