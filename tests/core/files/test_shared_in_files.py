"""Shared arrays in files: held once, and refused where they do not fit."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jno.lora
from jno.lora import Net, SelectionError, resolve
from jno.lora._commands import inspection

from ..tied import Frozen, Tied, X, adapted, mlp, run


def test_a_file_holds_the_array_once(tmp_path: Any) -> None:
    import safetensors.numpy

    model, path = adapted(), tmp_path / "tied.safetensors"
    jno.lora.save_adapters(model, path)
    assert len(safetensors.numpy.load_file(path)) == 3 + 2
    found = inspection.inspect(path, values=True)
    assert found["arrays"] == 5 and found["numbers"] == 5 + 5 + 2 + 2 * (2 * 5)
    assert "shared: tied-A [2, 5]" in str(inspection.as_table(found))
    loaded = jno.lora.load_adapters(mlp(), path, wrappers=Tied)
    assert eqx.tree_equal(loaded, model)
    read = jno.lora.read_adapters(path, wrappers=Tied)
    assert eqx.tree_equal(jno.lora.swap_adapters(mlp(), read), model)
    net = Net(mlp()).load_adapters(path, wrappers=Tied)
    np.testing.assert_array_equal(jax.vmap(net)(X), run(model))


def test_a_file_over_adapters_that_keep_the_array(tmp_path: Any) -> None:
    first = jno.lora.apply_lora(mlp(), 2, key=jax.random.key(0), wrapper=Tied, target="layers/0")
    jno.lora.save_adapters(first, tmp_path / "first.safetensors")
    with pytest.raises(jno.lora.CheckpointError, match="share an array 'tied-A' already"):
        jno.lora.load_adapters(adapted(), tmp_path / "first.safetensors", wrappers=Tied)


def test_a_part_of_a_model_is_not_saved(tmp_path: Any) -> None:
    with pytest.raises(SelectionError, match="Give the whole model"):
        jno.lora.save_adapters(adapted().layers[1], tmp_path / "a.safetensors")
    assert not (tmp_path / "a.safetensors").exists()


def test_a_resolved_model_has_the_adapters_of_the_model(tmp_path: Any) -> None:
    model, path = adapted(), tmp_path / "tied.safetensors"
    jno.lora.save_adapters(resolve(model), path)
    assert eqx.tree_equal(jno.lora.load_adapters(mlp(), path, wrappers=Tied), model)


def test_frozen_arrays_are_read_into_one_buffer(tmp_path: Any) -> None:
    import safetensors.numpy

    model, path = adapted(wrapper=Frozen), tmp_path / "frozen.safetensors"
    jno.lora.save_adapters(model, path)
    assert len(safetensors.numpy.load_file(path)) == 3 + 2
    loaded = jno.lora.load_adapters(mlp(), path, wrappers=Frozen)
    assert eqx.tree_equal(loaded, model)
    net = Net(mlp()).load_adapters(path, wrappers=Frozen)
    for found in (loaded, net.module):
        assert len({id(layer.A.value) for layer in found.layers}) == 1
        np.testing.assert_array_equal(jax.vmap(found)(X), jax.vmap(model)(X))


@pytest.mark.parametrize(
    "change", [lambda x: x[:1], lambda x: x.astype(np.int32), lambda x: x[0, 0]]
)
def test_a_file_with_an_array_that_does_not_fit(change: Any, tmp_path: Any) -> None:
    import safetensors
    import safetensors.numpy

    path = tmp_path / "tied.safetensors"
    jno.lora.save_adapters(adapted(), path)
    with safetensors.safe_open(path, "numpy") as file:
        metadata = {"jno.lora": file.metadata()["jno.lora"]}  # without the checksums
    arrays = safetensors.numpy.load_file(path)
    arrays["//shared:tied-A"] = np.ascontiguousarray(change(arrays["//shared:tied-A"]))
    safetensors.numpy.save_file(arrays, path, metadata)
    with pytest.raises(jno.lora.CheckpointError, match="shared array 'tied-A' is"):
        jno.lora.load_adapters(mlp(), path, wrappers=Tied)


def test_a_file_with_nan_in_a_shared_array_warns(tmp_path: Any) -> None:
    model = adapted()
    model = eqx.tree_at(lambda m: m.layers[0].A.value, model, jnp.full((2, 5), jnp.nan))
    jno.lora.save_adapters(model, tmp_path / "a.safetensors")
    with pytest.warns(jno.lora.JnoLoraWarning, match="//shared:tied-A: 10 of 10"):
        jno.lora.load_adapters(mlp(), tmp_path / "a.safetensors", wrappers=Tied)


def test_not_strict_the_adapters_of_an_array_that_exists_are_left_out(tmp_path: Any) -> None:
    first = jno.lora.apply_lora(mlp(), 2, key=jax.random.key(0), wrapper=Tied, target="layers/0")
    jno.lora.save_adapters(first, tmp_path / "a.safetensors")
    second = jno.lora.apply_lora(mlp(), 2, key=jax.random.key(1), wrapper=Tied, target="layers/1")
    with pytest.warns(jno.lora.JnoLoraWarning, match="0 of 1 adapters"):
        loaded = jno.lora.load_adapters(
            second, tmp_path / "a.safetensors", wrappers=Tied, strict=False
        )
    assert eqx.tree_equal(loaded, second)


def test_another_adapter_keeps_the_array_if_the_first_one_is_replaced(tmp_path: Any) -> None:
    from ..toys import ToyLinear

    other = jno.lora.apply_lora(
        mlp(), 2, key=jax.random.key(0), wrapper=ToyLinear, target="layers/0"
    )
    jno.lora.save_adapters(other, tmp_path / "a.safetensors")
    for freeze in (False, True):
        net = Net(mlp()).freeze().lora(rank=2, wrapper=Tied)
        if freeze:
            net.mask("layers/0/A").freeze()
        kept = net.module.layers[0].A.value
        net.load_adapters(tmp_path / "a.safetensors", wrappers=ToyLinear)
        assert net.module.layers[1].A.value is kept
        assert net.trainable.layers[1].A.value is not freeze
        assert net.trainable.layers[1].B.value is False
        net.update(net.partition()[0])
        jax.vmap(net)(X)
