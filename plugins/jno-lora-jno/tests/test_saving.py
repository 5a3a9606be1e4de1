"""Runs and adapters as files."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from problems import mlp, output, pinn

import jno
import jno_lora_jno
from jno.lora import load_adapters, merge_lora, save_adapters


def solved():
    net = mlp()
    before = net.module
    core = pinn(net.freeze().lora(rank=2, wrapper="dora"))
    core.solve(3)
    return net, before, core


def test_a_run_is_saved_and_loaded(tmp_path):
    net, _, core = solved()
    path = str(tmp_path / "run.pkl")
    jno.save(core, path)
    loaded = jno.load(path)
    (module,) = loaded.models.values()
    assert jnp.array_equal(output(module), output(net.module))
    loaded.solve(1)


def test_adapters_go_on_without_jno_and_the_merged_model_needs_jno_alone(tmp_path):
    net, before, _ = solved()
    save_adapters(jno_lora_jno.trained_adapters(net), tmp_path / "a.safetensors")
    adapted = load_adapters(before, tmp_path / "a.safetensors")
    assert jnp.allclose(output(merge_lora(adapted)), output(net.module), atol=1e-6)
    eqx.tree_serialise_leaves(str(tmp_path / "net.eqx"), net.module)
    again = jno.nn.wrap(eqx.tree_deserialise_leaves(str(tmp_path / "net.eqx"), before))
    assert jnp.array_equal(output(again.module), output(net.module))
    assert not any("jno_lora" in type(x).__module__ for x in jax.tree.leaves(again.module))


def test_a_checkpoint_is_restored(tmp_path):
    pytest.importorskip("orbax.checkpoint")
    callbacks = pytest.importorskip("jno.utils.adaptive.callbacks")
    if not hasattr(callbacks, "CheckpointCallback"):
        pytest.skip("this jNO keeps its checkpoints elsewhere")
    net = mlp()
    core = pinn(net.freeze().lora(rank=2, wrapper="dora"))
    core.solve(2, callbacks=[callbacks.CheckpointCallback(str(tmp_path), save_interval_epochs=1)])
    core.restore_checkpoint(str(tmp_path))
    core.solve(1)
    assert len(jno_lora_jno.trained_adapters(net))
