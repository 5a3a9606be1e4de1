"""Adapters that train at once learn what each would learn alone."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from zoo_cases import perturb

from jno.lora import Net, SelectionError, extract_adapters, lora_trainable_filter, swap_adapters
from jno_lora_bank import AdapterBank, at_slot

RATES = {"a": 1e-2, "b": 1e-3, "c": 3e-2}


class Stack(eqx.Module):
    """Two layers, and a stack of two."""

    first: eqx.nn.Linear
    blocks: eqx.nn.Linear

    def __call__(self, x):
        arrays, static = eqx.partition(self.blocks, eqx.is_array)
        step = lambda x, layer: (jnp.tanh(eqx.combine(layer, static)(x)), None)  # noqa: E731
        return jax.lax.scan(step, self.first(x), arrays)[0]


@pytest.fixture(scope="module")
def model():
    keys = jr.split(jr.key(0), 3)
    blocks = eqx.filter_vmap(lambda key: eqx.nn.Linear(4, 4, key=key))(keys[1:])
    return Stack(eqx.nn.Linear(5, 4, key=keys[0]), blocks)


@pytest.fixture(scope="module")
def sets(model):
    sets = {}
    for seed, (name, wrapper) in enumerate(zip(RATES, ["lora", "rslora", "lora-fa"], strict=True)):
        net = Net(model, key=jr.key(seed)).freeze().lora(1 + seed, 2.0, wrapper=wrapper)
        sets[name] = extract_adapters(perturb(net.module, 0.2))
    return sets


xs = jr.normal(jr.key(7), (12, 5))
names = ["a", "b", "c", "b"] * 3


def of_one(y):
    return jnp.sum(jnp.sin(y) ** 2)


def gradients(loss, trainable):
    return eqx.filter_jit(eqx.filter_grad(loss))(trainable)


def alone(model, adapters, mine):
    """The loss of one adapter on its examples, and its trainable arrays."""
    adapted = swap_adapters(model, adapters)
    trainable, frozen = eqx.partition(adapted, lora_trainable_filter(adapted))
    return lambda t: jnp.sum(jax.vmap(lambda x: of_one(eqx.combine(t, frozen)(x)))(mine)), trainable


def together(bank):
    """The loss of all adapters, each on its examples, and their trainable arrays."""
    trainable, frozen = bank.partition()
    slots = jnp.asarray(bank.snapshot().indices(names))

    def loss(trainable):
        model = eqx.combine(trainable, frozen)
        return jnp.sum(jax.vmap(lambda x, slot: of_one(at_slot(model, slot)(x)))(xs, slots))

    return loss, trainable


def examples_of(name):
    return xs[np.asarray([used == name for used in names])]


@pytest.mark.slow
def test_gradients_are_those_of_separate_runs(model, sets):
    bank = AdapterBank(model, sets)
    loss, trainable = together(bank)
    bank.update(gradients(loss, trainable))  # as values, to read them adapter by adapter
    for name, adapters in sets.items():
        trained_set = extract_adapters(swap_adapters(model, bank.adapters(name)))
        grads = gradients(*alone(model, adapters, examples_of(name)))
        for path in adapters:
            for field in adapters[path].wrapper.adapter_fields:
                expected = getattr(getattr(grads, path), field)
                np.testing.assert_allclose(trained_set[path].state[field], expected, atol=1e-5)


@pytest.mark.slow
def test_each_has_its_own_optimiser(model, sets):
    def make(rate):
        # Three things that must not be shared: a norm, a count and a rate.
        return optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(rate))

    bank = AdapterBank(model, {**sets, "idle": sets["a"]})
    optimiser = bank.optimiser(make, RATES)
    loss, trainable = together(bank)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # for optax
        bank.update(trained(optimiser, loss, trainable))
        for name, adapters in sets.items():
            of_own, mine = alone(model, adapters, examples_of(name))
            mine = trained(make(RATES[name]), of_own, mine)
            for path, adapter in bank.adapters(name).adapters.items():
                for field in adapter.wrapper.adapter_fields:
                    expected = getattr(getattr(mine, path), field)
                    np.testing.assert_allclose(adapter.state[field], expected, atol=1e-5)
                    assert not np.allclose(expected, adapters[path].state[field], atol=1e-3)
    A = [adapters["first"].state["lora_A"] for adapters in (bank.adapters("c"), sets["c"])]
    assert jnp.array_equal(*A)  # LoRA-FA freezes it
    assert eqx.tree_equal(bank.adapters("idle"), sets["a"])


def trained(optimiser, loss, trainable):
    @eqx.filter_jit
    def step(trainable, state):
        updates, state = optimiser.update(eqx.filter_grad(loss)(trainable), state, trainable)
        return eqx.apply_updates(trainable, updates), state

    state = optimiser.init(trainable)
    for _ in range(3):
        trainable, state = step(trainable, state)
    return trainable


@pytest.mark.slow
def test_a_rate_is_of_the_precision_of_the_factors():
    with jax.enable_x64(True):
        model = eqx.nn.Linear(3, 2, key=jr.key(0), dtype=jnp.float64)
        adapters = extract_adapters(Net(model).freeze().lora(1, 2.0).module)
        bank = AdapterBank(model, {"a": adapters})
        trainable, _ = bank.partition()
        optimiser = bank.optimiser(optax.sgd, {"a": 0.1})
        updates, _ = optimiser.update(trainable, optimiser.init(trainable))
        assert jnp.array_equal(updates.lora_A[1], -0.1 * trainable.lora_A[1])


@pytest.mark.slow
def test_optimisers_of_untrainable_or_unknown_slots_are_refused(model, sets, unchecked):
    pissa = extract_adapters(Net(model).lora(2, 2.0, wrapper="pissa").module)
    bank = AdapterBank(model, {**sets, "pissa": pissa})
    with pytest.raises(SelectionError, match=r"'pissa' cannot train.*PiSSALinear.*Net\("):
        bank.optimiser(optax.sgd, {"a": 1.0, "pissa": 1.0})
    with pytest.raises(SelectionError, match="no adapter 'd'"):
        bank.optimiser(optax.sgd, {"d": 1.0})
    for wrong in ({None: 1.0}, {"a": optax.constant_schedule(1.0)}):
        with pytest.raises(SelectionError, match="must hold a number for the name"):
            bank.optimiser(optax.sgd, wrong)
    trainable, frozen = bank.partition()
    with pytest.raises(SelectionError, match="other values"):
        bank.update(frozen)
    with pytest.raises(SelectionError, match="not a factor of a slot"):
        bank.optimiser(optax.sgd, {"a": 1.0}).init(eqx.filter(model, eqx.is_inexact_array))
    bank.remove("a")
    with pytest.raises(SelectionError, match="changed after partition"):
        bank.update(trainable)
