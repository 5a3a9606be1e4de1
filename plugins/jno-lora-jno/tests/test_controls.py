"""jNO's other controls beside adapters: reset, constraints, dtypes, tuning, reports."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest
from problems import IS_OLD, mlp, pinn

import jno_lora_jno
from jno.lora import JnoLoraWarning, SelectionError


def test_reset_and_another_configuration():
    net = mlp()
    net.freeze().lora(rank=2, wrapper="dora")
    net.reset()
    net.freeze().lora(rank=1, wrapper="ia3")
    pinn(net).solve(2)
    (kind,) = {
        item.wrapper.__name__ for item in jno_lora_jno.trained_adapters(net).adapters.values()
    }
    assert kind == "IA3Linear"
    net.reset()
    pinn(net).solve(1)
    with pytest.raises(SelectionError, match="last solve"):
        jno_lora_jno.trained_adapters(net)


def test_constrained_weights_are_explained():
    net = mlp()
    net.constrain(jax.nn.softplus)
    with pytest.raises(SelectionError, match="paramax computes that weight anew"):
        pinn(net.lora(rank=2)).solve(1)


def test_other_layers_than_the_constrained_one_are_adapted():
    net = mlp()
    mask = jax.tree.map(lambda _: False, net.module)
    mask = eqx.tree_at(lambda m: m.output_layer.weight, mask, True)
    net.mask(mask).constrain(jax.nn.softplus)
    with pytest.warns(JnoLoraWarning, match="output_layer"):
        pinn(net.lora(rank=1)).solve(1)
    assert "output_layer" not in set(jno_lora_jno.trained_adapters(net))


def test_jno_logs_what_was_adapted_in_half_precision(capfd):
    net = mlp()
    pinn(net.dtype(jnp.bfloat16).freeze().lora(rank=2, alpha=4.0, wrapper="dora")).solve(1)
    logged = "".join(capfd.readouterr())
    assert "DoRALinear" in logged and "4.0" in logged and "policy=LoRA" in logged


@pytest.mark.skipif(IS_OLD, reason="jNO samples since 0.3")
@pytest.mark.parametrize("by", ["bayesian", "vi"])
def test_adapters_are_sampled(by):
    blackjax = pytest.importorskip("blackjax")
    net = mlp()
    core = pinn(net.freeze().lora(rank=1, target="output"))
    net._opt_fn = None
    if by == "bayesian":
        net.bayesian(blackjax.sgld, step_size=1e-5, warmup=1, keep=2)
    else:
        net.vi(blackjax.meanfield_vi, optimizer=optax.adam(1e-3))
    core.solve(4)
    assert set(jno_lora_jno.trained_adapters(net)) == {"output_layer"}


def test_jno_s_own_adapters_come_back():
    from jno.architectures.lora import DoRALinear as Theirs

    net = mlp()
    with pytest.raises(SelectionError, match=r"jno\.lora\.DoRALinear"):
        net.lora(wrapper=Theirs)
    with jno_lora_jno.enabled(False):
        pinn(net.freeze().lora(rank=2, wrapper=Theirs)).solve(1)
    assert jno_lora_jno.is_enabled()
