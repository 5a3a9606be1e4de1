import pathlib
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import jno_lora_outside
import numpy as np
import pytest
from jno_lora_outside import PrincipalInputs

import jno.lora
from jno.lora import Net, resolve
from jno.lora.testing import parametrize_with_checks, standard_cases


@parametrize_with_checks(standard_cases(PrincipalInputs)[:1])
def test_conformance(check):
    check()


def test_only_public_names_are_used():
    source = pathlib.Path(jno_lora_outside.__file__).read_text()
    assert not re.search(r"jno\.lora[\w.]*\._|from jno\.lora[\w.]* import _", source)


X = jax.random.normal(jax.random.key(1), (16, 4))
Y = jnp.sin(2 * X[:, :3])


def loss(model, batch):
    x, y = batch
    return jnp.mean((jax.vmap(resolve(model))(x) - y) ** 2)


def trained(net, steps=100, rate=0.2):
    """The net after some steps of gradient descent, and the loss before and after."""
    trainable, frozen = net.partition()

    def of(trainable):
        model = eqx.combine(trainable, frozen)
        return loss(model, (X, Y)) + 0.01 * jno.lora.penalty(model)

    step = eqx.filter_jit(eqx.filter_value_and_grad(of))
    first = step(trainable)[0]
    for _ in range(steps):
        value, grads = step(trainable)
        trainable = jax.tree.map(lambda p, g: p - rate * g, trainable, grads)
    return net.update(trainable), first, value


def model():
    return eqx.nn.MLP(4, 3, 6, 2, key=jax.random.key(0))


# How many parameters train: the bank of VB-LoRA exists once.
COUNTS = {
    "principal-inputs": 2 * (4 + 6 + 6 + 6 + 6 + 3),
    "vector-bank": 8 * 6 + 3 * 2 * (2 * 8),
    "moving-rank": 2 * (4 + 6 + 6 + 6 + 6 + 3) + 3 * 2,
}


@pytest.mark.parametrize("wrapper", COUNTS)
def test_each_is_found_trained_saved_loaded_and_merged(wrapper, tmp_path):
    data = ([(X, Y)], loss) if wrapper == "principal-inputs" else None
    net = Net(model()).freeze().lora(rank=2, alpha=2, wrapper=wrapper, calibrate=data)
    assert net.summary().trainable == COUNTS[wrapper]
    np.testing.assert_allclose(jax.vmap(net)(X), jax.vmap(model())(X), atol=1e-5)
    net, before, after = trained(net)
    assert after < 0.98 * before
    net.save_adapters(tmp_path / "a.safetensors")
    expected = jax.vmap(net)(X)
    loaded = Net(model()).load_adapters(tmp_path / "a.safetensors")
    np.testing.assert_array_equal(jax.vmap(loaded)(X), expected)
    np.testing.assert_allclose(jax.vmap(loaded.merge())(X), expected, atol=1e-5)


def test_ranks_are_allocated_by_the_statistics():
    statistics = jno.lora.calibrate(model(), [(X, Y)], loss, wrapper="principal-inputs")
    ranks = jno.lora.allocate(statistics, budget=6)
    net = Net(model()).freeze()
    net.lora(wrapper="principal-inputs", specs=ranks.specs, statistics=statistics)
    assert sum(row.rank for row in net.summary()) == 6
