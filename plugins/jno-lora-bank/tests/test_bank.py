"""A bank: each example of a batch gets what its own adapter gives alone."""

import threading

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jno.lora import (
    JnoLoraError,
    Net,
    SelectionError,
    extract_adapters,
    read_adapters,
    save_adapters,
    swap_adapters,
    to_lora,
)
from jno_lora_bank import AdapterBank, at_slot

SIZE, BATCH = 6, 12
METHODS = (
    *("lora", "rslora", "lora-fa", "pissa", "milora", "vera", "lora-xs"),
    *("dora", "ia3", "ia3-out"),
)


def adapters_of(model, wrapper="lora", seed=0, rank=2, target=None, options=None):
    """A set of adapters that have moved away from their start."""
    net = Net(model, key=jr.key(seed)).freeze()
    net.lora(rank, 3.0, wrapper=wrapper, target=target, options=options)
    trainable, _ = net.partition()
    keys = iter(jr.split(jr.key(seed + 100), 99))
    moved = jax.tree.map(lambda a: a + 0.3 * jr.normal(next(keys), a.shape, a.dtype), trainable)
    return extract_adapters(net.update(moved).module)


@pytest.fixture(scope="module")
def model():
    return eqx.nn.MLP(SIZE, 4, 8, 1, key=jr.key(0))


@pytest.fixture(scope="module")
def sets(model):
    made = {name: adapters_of(model, name, seed) for seed, name in enumerate(METHODS)}
    made["biased"] = adapters_of(model, "lora", 20, 3, options={"bias": "train"})
    made["one layer"] = adapters_of(model, "rslora", 21, 4, target="layers/1")
    return made


@pytest.fixture(scope="module")
def xs():
    return jr.normal(jr.key(1), (BATCH, SIZE))


@pytest.fixture(scope="module")
def bank(model, sets):
    return AdapterBank(model, sets)


@eqx.filter_jit
def plain(model, xs):
    return jax.vmap(model)(xs)


def expected(model, sets, names, xs):
    models = [model if name is None else swap_adapters(model, sets[name]) for name in names]
    return jnp.stack([own(x) for own, x in zip(models, xs, strict=True)])


def test_each_example_uses_its_own(model, sets, bank, xs):
    names = [*sets][:BATCH]
    ys = bank.run(names, xs)
    np.testing.assert_allclose(ys, expected(model, sets, names, xs), atol=1e-5)
    index = jnp.asarray(bank.snapshot().indices(names))
    np.testing.assert_allclose(jax.vmap(bank)(xs, index), ys, atol=1e-6)
    np.testing.assert_allclose(bank(xs[3], names[3]), ys[3], atol=1e-6)


def test_slot_0_is_the_base_bit_for_bit(model, sets, bank, xs):
    of_base = plain(model, xs)
    assert jnp.array_equal(bank.run([None] * BATCH, xs), of_base)
    mixed = bank.run([None, "dora", None, "pissa"] * 3, xs)
    assert jnp.array_equal(mixed[::2], of_base[::2])
    assert not jnp.any(mixed[1::2] == of_base[1::2])
    # Even where a product with zeros would not be zero.
    wild = xs.at[0].set(jnp.inf)
    assert jnp.array_equal(bank.run([None] * BATCH, wild), plain(model, wild), equal_nan=True)


def test_adapters_come_and_go_without_compiling(model, sets, xs):
    bank = AdapterBank(model, {"a": sets["lora"]}, slots=3, rank=4, fixed=True)
    names = ["a", None] * (BATCH // 2)
    bank.run(names, xs)
    bank.add(sets["rslora"], "b")
    bank.remove("b")
    with jax.log_compiles(False), count_compiled() as compiled:
        assert bank.add(sets["one layer"], "c") == 3  # the slot of "b" was emptied later
        assert bank.replace("a", sets["milora"]) == 1
        assert bank.add(sets["lora-fa"], "d") == 2
        ys = bank.run(["c", "a", "d"] * 4, xs)
        bank.remove("c")
    assert compiled == []
    now = {"a": sets["milora"], "c": sets["one layer"], "d": sets["lora-fa"]}
    np.testing.assert_allclose(ys, expected(model, now, ["c", "a", "d"] * 4, xs), atol=1e-5)
    assert dict(bank.slots) == {"a": 1, "d": 2}
    assert bank.capacity == 3


class count_compiled:
    """Lists the programs that JAX compiles."""

    def __enter__(self):
        self.found = []
        jax.monitoring.register_event_duration_secs_listener(self._note)
        return self.found

    def _note(self, event, duration, **kwargs):
        if event == "/jax/core/compile/backend_compile_duration":
            self.found.append(event)

    def __exit__(self, *_):
        jax.monitoring.unregister_event_duration_listener(self._note)
