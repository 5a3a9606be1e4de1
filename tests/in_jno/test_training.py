"""Every way of calling `net.lora`, trained by jNO: what trains, what stays, what is merged."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from problems import copy_of, data_driven, mlp, operator, output, pinn

from jno.lora import (
    DoRALinear,
    LinearLike,
    LoRALinear,
    LoRAWrapper,
    apply_lora,
    in_jno,
    merge_lora,
    register,
    swap_adapters,
)


class ScaledOutput(LoRAWrapper):
    """A third party's adapter: one factor per layer."""

    adapter_fields = ("factor",)
    base: eqx.Module
    factor: jax.Array
    rank: int = eqx.field(static=True)
    alpha: float = eqx.field(static=True)

    @classmethod
    def applies_to(cls, leaf):
        return isinstance(leaf, LinearLike) and not isinstance(leaf, LoRAWrapper)

    def __init__(self, base, rank, alpha, *, key):
        self.base, self.rank, self.alpha, self.factor = base, rank, alpha, jnp.ones(())

    def __call__(self, x):
        return self.merge()(x)

    def merge(self):
        def scaled(layer):
            return [leaf for leaf in (layer.weight, layer.bias) if leaf is not None]

        return eqx.tree_at(scaled, self.base, replace_fn=lambda leaf: leaf * self.factor)


register(ScaledOutput)


def mask_of(module, where):
    return eqx.tree_at(where, jax.tree.map(lambda _: False, module), True)


def weight_of_output(module):
    return module.output_layer.weight


def changed(before, after):
    """The names of the layers whose weight, and whose bias, differ."""
    names = {}
    for (keys, a), b in zip(
        jax.tree_util.tree_leaves_with_path(eqx.filter(before, eqx.is_array)),
        jax.tree.leaves(eqx.filter(after, eqx.is_array)),
        strict=True,
    ):
        names[jax.tree_util.keystr(keys)] = not bool(jnp.array_equal(a, b))
    return {name for name, differs in names.items() if differs}


HIDDEN, OUTPUT = ".hidden_layers[0]", ".output_layer"


@pytest.mark.parametrize(
    ("kwargs", "classes"),
    [
        ({}, {"LoRALinear"}),
        ({"rank": 1, "alpha": 8.0, "target": "hidden"}, {"LoRALinear"}),
        ({"wrapper": DoRALinear}, {"DoRALinear"}),
        ({"wrapper": "VeRALinear"}, {"VeRALinear"}),
        ({"wrapper": "pissa"}, {"PiSSALinear"}),
        ({"wrapper": ["ia3", LoRALinear]}, {"IA3Linear"}),
        ({"wrapper": "auto"}, {"LoRALinear"}),
        ({"wrapper": "ScaledOutput"}, {"ScaledOutput"}),
        ({"options": {"adapter_dtype": jnp.bfloat16}}, {"LoRALinear"}),
        (
            {
                "specs": [
                    {"target": "hidden", "rank": 2, "wrapper": "oft"},
                    {"rank": 1, "alpha": 2.0},
                ]
            },
            {"OFTLinear", "LoRALinear"},
        ),
    ],
    ids=str,
)
def test_each_call_trains_adapters_only_and_is_merged(kwargs, classes):
    net = mlp()
    before = copy_of(net.module)
    solved = pinn(net.freeze().lora(**{"rank": 2, **kwargs})).solve(3)
    adapters = in_jno.trained_adapters(net)
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
    assert set(in_jno.trained_adapters(net)) == {"output_layer"}
    touched = changed(before, net.module)
    assert f"{OUTPUT}.weight" in touched and f"{OUTPUT}.bias" not in touched
    assert (f"{HIDDEN}.weight" in touched) is not freeze


def test_an_operator_learns_from_data():
    net = operator()
    before = copy_of(net.module)
    data_driven(net.freeze().lora(rank=2, wrapper=["dora", "lora"])).solve(3)
    names = {item.wrapper.__name__ for item in in_jno.trained_adapters(net).adapters.values()}
    assert names == {"DoRALinear", "DoRAConv", "LoRASpectral"}
    assert changed(before, net.module)


def test_several_models_keep_their_adapters_apart():
    one, two = mlp(), mlp(key=1)
    pinn(one.freeze().lora(rank=2, wrapper="dora"), two.freeze().lora(rank=1)).solve(2)
    a, b = (in_jno.trained_adapters(net).adapters["output_layer"] for net in (one, two))
    assert (a.wrapper.__name__, a.rank) == ("DoRALinear", 2)
    assert (b.wrapper.__name__, b.rank) == ("LoRALinear", 1)


def test_the_model_computes_the_same_until_it_is_trained():
    net = mlp()
    net.lora(rank=2, wrapper="pissa")
    adapted = apply_lora(net.module, 2, wrappers="pissa", key=jax.random.key(0))
    assert jnp.allclose(output(net.module), output(adapted), atol=1e-5)
