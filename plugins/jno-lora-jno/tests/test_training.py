"""Every way of calling `net.lora`, trained by jNO: what trains, what stays, what is merged."""

import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from problems import copy_of, data_driven, mlp, operator, output, pinn

import jno
import jno_lora_jno
from jno.lora import (
    DoRALinear,
    JnoLoraWarning,
    LoRALinear,
    Net,
    SelectionError,
    apply_lora,
    extract_adapters,
    merge_lora,
    register,
    swap_adapters,
)
from jno_lora_zoo import collect_statistics


class ThirdParty(LoRALinear):
    variant = None


register(ThirdParty)


def mask_of(module, where):
    return eqx.tree_at(where, jax.tree.map(lambda _: False, module), True)


def weight_of_output(module):
    return module.output_layer.weight


def changed(before, after):
    arrays = jax.tree_util.tree_leaves_with_path(eqx.filter(before, eqx.is_array))
    others = jax.tree.leaves(eqx.filter(after, eqx.is_array))
    pairs = zip(arrays, others, strict=True)
    return {jax.tree_util.keystr(keys) for (keys, a), b in pairs if not jnp.array_equal(a, b)}


HIDDEN, OUTPUT = ".hidden_layers[0]", ".output_layer"


SPECS = [{"target": "hidden", "rank": 2, "wrapper": "oft"}, {"rank": 1, "alpha": 2.0}]


@pytest.mark.parametrize(
    ("kwargs", "classes"),
    [
        ({"rank": 1, "alpha": 8.0, "target": "hidden"}, {"LoRALinear"}),
        ({"wrapper": DoRALinear}, {"DoRALinear"}),
        ({"wrapper": "vera-shared"}, {"VeRASharedLinear"}),
        ({"wrapper": "pissa"}, {"PiSSALinear"}),
        ({"wrapper": ["ia3", LoRALinear]}, {"IA3Linear"}),
        ({"wrapper": "auto"}, {"LoRALinear"}),
        ({"wrapper": "ThirdParty"}, {"ThirdParty"}),
        ({"options": {"adapter_dtype": jnp.bfloat16}}, {"LoRALinear"}),
        ({"specs": SPECS}, {"OFTLinear", "LoRALinear"}),
    ],
    ids=str,
)
def test_each_call_trains_adapters_only_and_is_merged(kwargs, classes):
    net = mlp()
    before = copy_of(net.module)
    solved = pinn(net.freeze().lora(**{"rank": 2, **kwargs})).solve(3)
    adapters = jno_lora_jno.trained_adapters(net)
    assert {item.wrapper.__name__ for item in adapters.adapters.values()} == classes
    # jNO's merged model is the former model with these adapters merged; nothing else changed.
    again = merge_lora(swap_adapters(before, adapters))
    for a, b in zip(jax.tree.leaves(net.module), jax.tree.leaves(again), strict=True):
        assert not eqx.is_array(a) or jnp.allclose(a, b, atol=1e-6)
    paths = {f".{p.replace('/0', '[0]').replace('/1', '[1]')}" for p in adapters}
    touched = changed(before, net.module)
    assert touched and all(any(name.startswith(path) for path in paths) for name in touched)
    assert jax.tree.structure(before) == jax.tree.structure(net.module)
    log = solved.training_logs[-1]
    assert log["lora_params"] > 0 and jnp.isfinite(log["total_loss"][-1])


def test_without_freeze_everything_outside_adapted_layers_trains():
    net = mlp()
    before = copy_of(net.module)
    pinn(net.lora(rank=2, target="hidden")).solve(3)
    touched = changed(before, net.module)
    # (The second derivative does not see the bias of the output.)
    assert {f"{HIDDEN}.weight", f"{OUTPUT}.weight"} <= touched
    assert f"{HIDDEN}.bias" not in touched


@pytest.mark.parametrize("freeze", [True, False])
def test_a_mask_says_which_layers_get_adapters(freeze):
    net = mlp()
    before = copy_of(net.module)
    net = net.freeze() if freeze else net
    net.mask(mask_of(mlp(key=5).module, weight_of_output)).lora(rank=2, wrapper="dora")
    pinn(net).solve(3)
    assert set(jno_lora_jno.trained_adapters(net)) == {"output_layer"}
    touched = changed(before, net.module)
    assert f"{OUTPUT}.weight" in touched and f"{OUTPUT}.bias" not in touched
    assert (f"{HIDDEN}.weight" in touched) is not freeze


def test_an_operator_learns_from_data():
    net = operator()
    before = copy_of(net.module)
    data_driven(net.freeze().lora(rank=2, wrapper=["dora", "lora"])).solve(3)
    names = {item.wrapper.__name__ for item in jno_lora_jno.trained_adapters(net).adapters.values()}
    assert names == {"DoRALinear", "DoRAConv", "LoRASpectral"}
    assert changed(before, net.module)


def test_several_models_keep_their_adapters_apart():
    one, two = mlp(), mlp(key=1)
    pinn(one.freeze().lora(rank=2, wrapper="dora"), two.freeze().lora(rank=1)).solve(2)
    a, b = (jno_lora_jno.trained_adapters(net).adapters["output_layer"] for net in (one, two))
    assert (a.wrapper.__name__, a.rank) == ("DoRALinear", 2)
    assert (b.wrapper.__name__, b.rank) == ("LoRALinear", 1)


def rows_of(model, batch):
    """A loss of the outputs, by which calibration reaches every layer."""
    return jnp.sum(jax.vmap(model)(batch))


BATCHES = [jnp.linspace(-1.0, 1.0, 8)[:, None]]


@pytest.mark.parametrize("by", ["statistics_from", "statistics", "specs"])
def test_adapters_that_start_from_data_are_calibrated(by):
    net = mlp()
    if by == "statistics_from":
        net.freeze().lora(rank=2, wrapper="eva", statistics_from=(iter(BATCHES), rows_of))
    elif by == "specs":
        specs = [{"target": "output", "wrapper": "lora"}, {"wrapper": "eva", "rank": 1}]
        net.freeze().lora(specs=specs, statistics_from=(BATCHES, rows_of))
    else:
        statistics = collect_statistics(net.module, BATCHES, rows_of, wrapper="eva")
        net.freeze().lora(rank=2, wrapper="eva", statistics=statistics)
    module = copy_of(net.module)
    statistics = collect_statistics(module, BATCHES, rows_of, wrapper="eva")
    expected = Net(module).lora(2, wrapper="eva", statistics=statistics)
    core = pinn(net)
    core.solve(2)
    adapters = jno_lora_jno.trained_adapters(net)
    assert "EVALinear" in {adapter.wrapper.__name__ for adapter in adapters.adapters.values()}
    # Two small steps leave the directions nearly as they start.
    start = extract_adapters(expected.module)["hidden_layers/0"].state["lora_A"]
    trained = adapters["hidden_layers/0"].state["lora_A"]
    assert jnp.allclose(trained[:1], start[:1], atol=0.1)
    core.solve(1)  # the batches are still there


def test_data_that_is_missing_or_given_twice_is_explained():
    net = mlp()
    with pytest.raises(SelectionError, match="not both"):
        net.lora(wrapper="eva", statistics={}, statistics_from=(BATCHES, rows_of))
    with pytest.raises(SelectionError, match=r"a pair `\(batches, loss\)`"):
        net.lora(wrapper="eva", statistics_from=BATCHES)
    with pytest.raises(SelectionError, match=r"Collect them, and pass `statistics=`"):
        pinn(net.freeze().lora(wrapper="eva")).solve(1)


def adapted_mlp():
    """A model with a trained LoRA around its hidden layers, as from a file."""
    module = mlp().module
    adapted = apply_lora(module, 2, wrappers="lora", target="hidden", key=jax.random.key(0))
    moved = jax.tree.map(lambda array: array + 0.1, extract_adapters(adapted))
    return swap_adapters(module, moved)


def test_a_wrapped_adapted_model_does_not_train_the_layers_in_its_adapters():
    net = jno.nn.wrap(copy_of(adapted_mlp()))
    before = copy_of(net.module)
    pinn(net).solve(3)
    touched = changed(before, net.module)
    assert f"{HIDDEN}.lora_A" in touched and f"{OUTPUT}.weight" in touched
    assert not any(".base" in name for name in touched)
    net.reset()
    mask = mask_of(net.module, lambda m: m.output_layer.weight)
    before = copy_of(net.module)
    pinn(net.mask(mask).freeze()).solve(3)
    touched = changed(before, net.module)
    assert f"{HIDDEN}.lora_A" in touched and f"{OUTPUT}.weight" not in touched
    assert not any(".base" in name for name in touched)
    net.reset()
    core = pinn(net.freeze(), mlp(key=1))
    before = copy_of(net.module)
    core.solve(1)
    assert not changed(before, net.module)


def test_saved_adapters_train_on_without_a_warning():
    net = jno.nn.wrap(copy_of(adapted_mlp()))
    before = copy_of(net.module)
    with warnings.catch_warnings():
        warnings.simplefilter("error", JnoLoraWarning)
        pinn(net.freeze().lora(rank=2, target="hidden")).solve(3)
    adapters, start = jno_lora_jno.trained_adapters(net), extract_adapters(before)
    assert set(adapters) == set(start)
    assert not eqx.tree_equal(adapters, start)
    merged = merge_lora(swap_adapters(before, adapters))
    assert jnp.allclose(output(merged), output(net.module), atol=1e-6)
