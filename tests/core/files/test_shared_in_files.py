"""Shared arrays in files: held once, and refused where they do not fit."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy

import jno.lora
from jno.lora import CheckpointError, Net, SelectionError, load_adapters, resolve, save_adapters
from jno.lora._commands import inspection

from ..tied import Frozen, Tied, X, adapted, apply, mlp, run, with_stack
from ..toys import ToyLinear


@pytest.mark.parametrize("wrapper", [Tied, Frozen])
def test_a_file_holds_the_array_once(wrapper: Any, file: Any) -> None:
    model = adapted(wrapper=wrapper)
    save_adapters(model, file)
    assert len(safetensors.numpy.load_file(file)) == 3 + 2
    found = inspection.inspect(file, values=True)
    assert found["arrays"] == 5 and found["numbers"] == 5 + 5 + 2 + 2 * (2 * 5)
    assert "shared: tied-A [2, 5]" in str(inspection.as_table(found))
    loaded = load_adapters(mlp(), file, wrappers=wrapper)
    assert eqx.tree_equal(loaded, model)
    read = jno.lora.read_adapters(file, wrappers=wrapper)
    assert eqx.tree_equal(jno.lora.swap_adapters(mlp(), read), model)
    net = Net(mlp()).load_adapters(file, wrappers=wrapper)
    np.testing.assert_array_equal(jax.vmap(net)(X), run(model))
    buffers = {id(layer.A.value) for layer in net.module.layers if layer.A.value is not None}
    assert len(buffers) == 1
    save_adapters(resolve(model), file)
    assert eqx.tree_equal(load_adapters(mlp(), file, wrappers=wrapper), model)


def test_a_file_holds_the_array_of_a_stack_once(file: Any) -> None:
    model = adapted(with_stack(3), wrapper=Frozen)
    save_adapters(model, file)
    arrays = safetensors.numpy.load_file(file)
    assert {x.shape for name, x in arrays.items() if "shared" in name} == {(2, 3), (3, 2)}
    assert eqx.tree_equal(load_adapters(with_stack(3), file, wrappers=Frozen), model)


def test_a_file_over_adapters_that_keep_the_array(file: Any) -> None:
    with pytest.raises(SelectionError, match="Give the whole model"):
        save_adapters(adapted().layers[1], file)
    assert not file.exists()
    save_adapters(apply(target="layers/0"), file)
    for strict in (True, False):
        with pytest.raises(CheckpointError, match="share an array 'tied-A' already"):
            load_adapters(apply(target="layers/1"), file, wrappers=Tied, strict=strict)


def test_a_file_with_an_array_that_does_not_fit_or_is_not_finite(file: Any) -> None:
    model = adapted()
    for change in (lambda x: x[:1], lambda x: x.astype(np.int32), lambda x: x[0, 0]):
        save_adapters(model, file)
        with safetensors.safe_open(file, "numpy") as opened:
            metadata = {"jno.lora": opened.metadata()["jno.lora"]}  # without the checksums
        arrays = safetensors.numpy.load_file(file)
        arrays["//shared:tied-A"] = np.ascontiguousarray(change(arrays["//shared:tied-A"]))
        safetensors.numpy.save_file(arrays, file, metadata)
        with pytest.raises(CheckpointError, match="shared array 'tied-A' is"):
            load_adapters(mlp(), file, wrappers=Tied)
    save_adapters(
        eqx.tree_at(lambda m: m.layers[0].A.value, model, jnp.full((2, 5), jnp.nan)), file
    )
    with pytest.warns(jno.lora.JnoLoraWarning, match="//shared:tied-A: 10 of 10"):
        load_adapters(mlp(), file, wrappers=Tied)


@pytest.mark.parametrize("freeze", [False, True])
def test_another_adapter_keeps_the_array_if_the_first_one_is_replaced(
    freeze: bool, file: Any
) -> None:
    save_adapters(apply(ToyLinear, "layers/0"), file)
    net = Net(mlp()).freeze().lora(rank=2, wrapper=Tied)
    if freeze:
        net.mask("layers/0/A").freeze()
    kept = net.module.layers[0].A.value
    net.load_adapters(file, wrappers=ToyLinear)
    assert net.module.layers[1].A.value is kept
    assert net.trainable.layers[1].A.value is not freeze
    assert net.trainable.layers[1].B.value is False
    net.update(net.partition()[0])
    jax.vmap(net)(X)
