import pathlib
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import jno_lora_outside
import numpy as np
import pytest
from jno_lora_outside import MovingRank, PrincipalInputs, VectorBank

import jno.lora
from jno.lora import Net, resolve
from jno.lora.extending import map_adapters
from jno.lora.testing import parametrize_with_checks, standard_cases

CASES = [it for cls in (PrincipalInputs, VectorBank, MovingRank) for it in standard_cases(cls)]


@parametrize_with_checks(CASES)
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


def trained(net, steps=40, rate=0.05, extra=lambda model: 0.0):
    """The net after some steps of gradient descent, and the loss before and after."""
    trainable, frozen = net.partition()

    def of(trainable):
        model = eqx.combine(trainable, frozen)
        return loss(model, (X, Y)) + extra(model)

    step = eqx.filter_jit(eqx.filter_value_and_grad(of))
    first = step(trainable)[0]
    for _ in range(steps):
        value, grads = step(trainable)
        trainable = jax.tree.map(lambda p, g: p - rate * g, trainable, grads)
    return net.update(trainable), first, value


def model():
    return eqx.nn.MLP(4, 3, 6, 2, key=jax.random.key(0))


@pytest.mark.parametrize("wrapper", ["principal-inputs", "vector-bank", "moving-rank"])
def test_each_is_found_trained_saved_loaded_and_merged(wrapper, tmp_path):
    data = ([(X, Y)], loss) if wrapper == "principal-inputs" else None
    net = Net(model()).freeze().lora(rank=2, alpha=2, wrapper=wrapper, calibrate=data)
    np.testing.assert_allclose(jax.vmap(net)(X), jax.vmap(model())(X), atol=1e-5)
    net, before, after = trained(net, steps=150, rate=0.2)
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


def test_the_bank_exists_once():
    net = Net(model()).freeze().lora(rank=2, wrapper="vector-bank")
    per_layer = 2 * (2 * 8)
    assert net.summary().trainable == 8 * 6 + 3 * per_layer


def test_a_controller_moves_the_rank_without_tracing_again():
    net = Net(model()).freeze().lora(rank=3, wrapper="moving-rank")
    net, *_ = trained(net, extra=lambda model: 0.1 * jno.lora.penalty(model))
    traces = []

    @eqx.filter_jit
    def keep(model, count):
        """The `count` largest gates of all layers."""
        traces.append(None)
        sizes = []
        map_adapters(lambda path, adapter: sizes.append(jnp.abs(adapter.gate)), model)
        least = jnp.sort(jnp.concatenate(sizes))[-count]

        def cut(path, adapter):
            gate = jnp.where(jnp.abs(adapter.gate) >= least, adapter.gate, 0)
            return eqx.tree_at(lambda it: it.gate, adapter, gate)

        return map_adapters(cut, model)

    for count in (6, 4):
        cut = keep(net.module, jnp.asarray(count))
        gates = [layer.gate for layer in cut.layers]
        assert sum(int(jnp.sum(gate != 0)) for gate in gates) == count
    assert len(traces) == 1
