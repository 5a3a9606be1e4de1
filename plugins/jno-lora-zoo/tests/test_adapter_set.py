"""Adapters taken out of a model, and put into another of the same form, also by a file."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from zoo_cases.models import trained

from jno.lora import (
    AdapterSet,
    CheckpointError,
    Net,
    SelectionError,
    WrapperError,
    apply_lora,
    extract_adapters,
    load_adapters,
    read_adapters,
    save_adapters,
    swap_adapters,
)
from jno_lora_combine import stack_adapters
from jno_lora_zoo import LoRALinear


class TwoKinds(eqx.Module):
    convolution: eqx.nn.Conv1d
    layers: list[eqx.nn.Linear]

    def __init__(self, key):
        keys = jax.random.split(key, 3)
        self.convolution = eqx.nn.Conv1d(2, 3, 3, padding=1, key=keys[0])
        self.layers = [eqx.nn.Linear(6, 6, key=keys[1]), eqx.nn.Linear(6, 5, key=keys[2])]

    def __call__(self, x):
        x = jax.vmap(self.layers[0])(self.convolution(x))
        return jax.vmap(self.layers[1])(jnp.tanh(x))


def set_of(*args, **options):
    return extract_adapters(trained(*args, **options))


@pytest.mark.parametrize("variant", ["lora", "pissa", "vera"])
def test_extracted_adapters_put_back_compute_the_same(variant, getkey):
    plain, x = TwoKinds(getkey()), jax.random.normal(getkey(), (2, 6))
    model = trained(plain, variant, 1)
    adapters = extract_adapters(model)
    assert list(adapters) == ["convolution", "layers/0", "layers/1"]
    assert not any(leaf is plain.layers[0].weight for leaf in jax.tree.leaves(adapters))
    again = swap_adapters(plain, adapters)
    assert eqx.tree_equal(jax.tree.structure(again), jax.tree.structure(model))
    assert jnp.array_equal(again(x), model(x))
    doubled = jax.tree.map(lambda a: 2 * a, adapters)  # a set is a pytree
    for name, array in adapters["layers/0"].state.items():
        assert jnp.array_equal(doubled["layers/0"].state[name], 2 * array)


@pytest.mark.parametrize(
    ("variant", "scale", "is_product"),
    [("lora", 1.5, True), ("rslora", 3 / 2**0.5, True), ("lora-xs", None, False)],
)
def test_an_adapter_without_its_layer_knows_its_scale(variant, scale, is_product, getkey):
    adapter = set_of(TwoKinds(getkey()), variant, 1)["layers/0"]
    assert adapter.scale == (None if scale is None else pytest.approx(scale))
    assert adapter.is_product is is_product
    with_bias = dataclasses.replace(adapter, state={**adapter.state, "bias_update": jnp.zeros(6)})
    assert with_bias.scale == adapter.scale and not with_bias.is_product


def test_the_adapters_of_a_set_replace_all_others(getkey):
    plain = TwoKinds(getkey())
    some, every = trained(plain, "dora", 1, target="layers/0"), trained(plain, "lora", 2)
    swapped = swap_adapters(every, extract_adapters(some))
    assert jax.tree.structure(swapped) == jax.tree.structure(some)
    assert eqx.tree_equal(swap_adapters(every, extract_adapters(plain)), plain)


@pytest.mark.parametrize("variant", ["lora", "pissa"])
def test_a_set_fits_a_template_a_stack_and_a_traced_model(variant, getkey):
    make = eqx.filter_vmap(lambda k: eqx.nn.Linear(3, 2, key=k))
    plain = {
        "one": eqx.nn.Linear(3, 2, key=getkey()),
        "stack": make(jax.random.split(getkey(), 2)),
    }
    model = trained(plain, variant, 1)
    adapters = extract_adapters(model)
    assert adapters["stack"].layer.stack_ndim == 1
    assert eqx.tree_equal(swap_adapters(model, adapters), model, rtol=1e-5, atol=1e-6)
    traced = eqx.filter_jit(swap_adapters)(plain, adapters)
    assert eqx.tree_equal(traced, model, rtol=1e-5, atol=1e-6)
    template = eqx.filter_eval_shape(swap_adapters, plain, adapters)
    again = eqx.filter_eval_shape(swap_adapters, template, adapters)
    assert eqx.tree_equal(again, template)


@pytest.mark.parametrize("variant", ["pissa", "vera", "lora-in-norm"])
def test_the_set_of_a_template_reads_what_equinox_wrote(variant, tmp_path, getkey):
    layers = [eqx.nn.Linear(3, 2, key=getkey())]
    if variant == "lora-in-norm":
        layers = [eqx.nn.WeightNorm(layers[0])]
    else:
        keys = jax.random.split(getkey(), 2)
        layers.append(eqx.filter_vmap(lambda k: eqx.nn.Linear(3, 2, key=k))(keys))
    model = trained(layers, variant, 1)
    adapters = extract_adapters(model)
    template = extract_adapters(eqx.filter_eval_shape(lambda: model))
    assert jax.tree.structure(template) == jax.tree.structure(adapters)
    eqx.tree_serialise_leaves(tmp_path / "adapters.eqx", adapters)
    read = eqx.tree_deserialise_leaves(tmp_path / "adapters.eqx", template)
    assert eqx.tree_equal(read, adapters)


# --- files

VARIANTS = ("lora", "dora", "pissa", "lora-xs", "vera", "lokr")


def test_loading_onto_an_adapted_model_is_loading_onto_the_plain_one(tmp_path):
    keys = jax.random.split(jax.random.key(3), len(VARIANTS))
    base = {
        variant: {
            "linear": eqx.nn.Linear(7, 6, key=key),
            "half": eqx.nn.Linear(7, 6, dtype=jnp.bfloat16, key=key),
        }
        for variant, key in zip(VARIANTS, keys, strict=True)
    }
    specs = [{"target": f"^{v}/", "wrapper": v} for v in VARIANTS]
    model, file = trained(base, None, 4, specs=specs), tmp_path / "zoo.safetensors"
    save_adapters(model, file)
    other = apply_lora(base, 3, key=jax.random.key(9), target="^(lora|dora)/linear")
    loaded = load_adapters(other, file)
    assert eqx.tree_equal(loaded, load_adapters(base, file), typematch=True)
    assert eqx.tree_equal(loaded, model, typematch=True)
    assert eqx.tree_equal(read_adapters(file), extract_adapters(model))


def test_a_net_that_replaces_adapters_still_knows_the_layers_themselves(tmp_path, getkey):
    layer = [eqx.nn.Linear(7, 6, key=getkey())]
    Net(layer).freeze().lora(2, wrapper="pissa").save_adapters(tmp_path / "file")
    net = Net(layer).freeze().lora(3, wrapper="milora").load_adapters(tmp_path / "file")
    assert net.module[0].rank == 2
    net.add_adapter("mine")
    with net.disabled():
        assert net.module[0].weight is layer[0].weight
        with pytest.raises(SelectionError, match="disabled"):
            net.load_adapters(tmp_path / "file")
        net.save_adapters(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "file").read_bytes()
    assert net.deactivate().module[0].weight is layer[0].weight
    net.add_adapter("other", read_adapters(tmp_path / "file")).activate("other")
    assert net.unwrap().module[0].weight is layer[0].weight


# --- what does not fit


def test_everything_that_does_not_fit_is_listed_at_once(getkey):
    adapters = set_of(TwoKinds(getkey()), "lora", 1)
    other = TwoKinds(getkey())
    other = eqx.tree_at(lambda m: m.layers, other, [eqx.nn.Linear(6, 7, key=getkey())])
    other = eqx.tree_at(lambda m: m.convolution.bias, other, replace_fn=lambda b: b.astype("int32"))
    with pytest.raises(SelectionError) as error:
        swap_adapters(other, adapters)
    for line in (
        "layers/1: the model has no layer there (the nearest is 'layers/0')",
        "layers/0/weight: the adapter was made for float32[6, 6], the Linear has float32[7, 6]",
        "convolution/bias: the adapter was made for float32[3, 1], the Conv1d has int32[3, 1]",
    ):
        assert line in str(error.value)


class Looks(eqx.Module):
    """Of the arrays of a linear layer, and nothing else of one."""

    weight: jax.Array
    bias: jax.Array


def test_a_layer_that_the_class_is_not_for_is_refused(tmp_path, getkey):
    linear, conv = eqx.nn.Linear(3, 2, key=getkey()), eqx.nn.Conv1d(3, 3, 3, key=getkey())
    model = trained({"linear": linear, "conv": conv, "norm": linear}, "lora", 1)
    adapters = extract_adapters(model).adapters
    adapters["norm/layer"] = adapters.pop("norm")
    other = {
        "linear": Looks(linear.weight, linear.bias),
        "conv": eqx.nn.ConvTranspose1d(3, 3, 3, key=getkey()),
        "norm": eqx.nn.WeightNorm(linear),
    }
    with pytest.raises(SelectionError) as error:
        swap_adapters(other, AdapterSet(adapters))
    save_adapters(model, tmp_path / "adapters.safetensors")
    with pytest.raises(CheckpointError) as of_file:
        load_adapters(other, tmp_path / "adapters.safetensors")
    for line in (
        "linear: a LoRALinear is not for this Looks",
        "conv: a LoRAConv is not for this ConvTranspose1d",
    ):
        assert line in str(error.value) and line in str(of_file.value)
    assert "norm/layer: inside the norm at 'norm', which rewrites" in str(error.value)


class Stateless(LoRALinear):
    def state(self):
        raise RuntimeError("no state")


def test_a_state_that_fails_or_builds_nothing_is_told_with_its_path(getkey):
    plain = {"a": eqx.nn.Linear(3, 3, key=getkey())}
    adapters = set_of(plain, "lora", 1)
    edited = AdapterSet({"a": dataclasses.replace(adapters["a"], rank=3)})
    message = r"Could not build the LoRALinear at 'a': .*(?s:.*)lora_A: expected shape \(3, 3\)"
    template = eqx.filter_eval_shape(lambda: plain)
    for model, odd, told in (
        (plain, edited, message),
        (plain, stack_adapters([adapters, adapters]), r"build .* at 'a'"),
        (template, set_of(plain, "pissa", 1), r"build .* at 'a'"),
    ):
        with pytest.raises(SelectionError, match=told):
            swap_adapters(model, odd)
    stateless = apply_lora(plain, 2, key=getkey(), wrapper=Stateless)
    with pytest.raises(WrapperError, match="take the Stateless at 'a' out: RuntimeError: no state"):
        extract_adapters(stateless)


def test_two_nodes_of_one_path_are_not_confused(getkey):
    layer = eqx.nn.Linear(4, 3, key=getkey())
    twice = apply_lora({"a/b": layer, "a": {"b": layer}}, 1, key=getkey())
    with pytest.raises(SelectionError, match="Two adapted layers have the path 'a/b'"):
        extract_adapters(twice)
    # An array at the path of a layer takes no adapter.
    adapted = apply_lora({"a": {"b": layer}}, 2, key=getkey())
    model = {"a": {"b": layer}, "a/b": jnp.ones(3)}
    swapped = swap_adapters(model, extract_adapters(adapted))
    assert swapped["a/b"] is model["a/b"] and isinstance(swapped["a"]["b"], LoRALinear)


def test_swapping_compiles_nothing_anew_and_works_inside_jit(getkey):
    plain, x = TwoKinds(getkey()), jax.random.normal(getkey(), (2, 6))
    one, other = (trained(plain, "lora", seed) for seed in (1, 2))
    traces = 0

    @eqx.filter_jit
    def run(model, x):
        nonlocal traces
        traces += 1
        return model(x)

    @eqx.filter_jit
    def run_with(model, adapters, x):
        return swap_adapters(model, adapters)(x)

    run(one, x)
    swapped = swap_adapters(one, extract_adapters(other))
    assert jnp.array_equal(run(swapped, x), run(other, x))
    assert traces == 1
    assert jnp.allclose(run_with(plain, extract_adapters(other), x), other(x), rtol=1e-5)
