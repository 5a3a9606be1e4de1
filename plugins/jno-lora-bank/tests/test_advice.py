"""Each call that a refusal of a bank advises is made on the refused input, and succeeds."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from tests.core.test_options import OutputGain
from zoo_cases import perturb

from jno.lora import (
    Net,
    SelectionError,
    apply_lora,
    extract_adapters,
    merge_lora,
    swap_adapters,
    unwrap_lora,
)
from jno_lora_bank import AdapterBank, at_slot
from jno_lora_combine import stack_adapters, sum_adapters, take_adapters, to_lora

MODEL = eqx.nn.Sequential([eqx.nn.Linear(4, 3, key=jr.key(0))])
X = jr.normal(jr.key(1), (4,))


def set_of(wrapper="lora", rank=1, seed=0, **options):
    """A set of adapters that have moved away from their start."""
    net = Net(MODEL, key=jr.key(seed)).freeze().lora(rank, wrapper=wrapper, options=options)
    return extract_adapters(perturb(net.module, 0.3, seed))


def sum_of(*sets):
    return extract_adapters(sum_adapters(MODEL, dict(zip("ab", sets, strict=True))))


def biased(rank=1):
    return set_of(rank=rank, bias="train")


def gains():
    """Of an adapter of no layer kind."""
    adapted = apply_lora(MODEL, key=jr.key(0), wrapper=OutputGain)
    return extract_adapters(perturb(adapted, 0.3))


def as_lora(adapters, rank):
    return extract_adapters(to_lora(swap_adapters(MODEL, adapters), rank=rank)[0])


def takes_nearest_product(adapters):
    return AdapterBank(MODEL, {"a": as_lora(adapters, rank=3)})(X, "a")


def merges(adapters):
    return AdapterBank(merge_lora(swap_adapters(MODEL, adapters)))(X, None)


def stacks(adapters):
    stacked = stack_adapters([adapters, adapters])
    return swap_adapters(MODEL, take_adapters(stacked, 1))(X)


NEAREST = "extract_adapters(to_lora(swap_adapters(model, adapters), rank=...)[0])"
MERGE = "AdapterBank(merge_lora(swap_adapters(model, adapters)))"
STACK = "stack_adapters([adapters, ...])"


@pytest.mark.parametrize(
    ("make", "advice", "follow"),
    [
        (lambda: set_of("oft", 3), NEAREST, takes_nearest_product),
        (gains, NEAREST, takes_nearest_product),
        (lambda: sum_of(set_of(), set_of("dora", seed=1)), NEAREST, takes_nearest_product),
        (lambda: sum_of(set_of(), set_of("ia3-out")), MERGE, merges),
        (lambda: sum_of(biased(), set_of("dora")), MERGE, merges),
        (lambda: sum_of(set_of(), set_of("bottleneck")), STACK, stacks),
        (lambda: set_of("hydra-lora", experts=2), STACK, stacks),
    ],
    ids=[
        *("rotation", "no layer kind", "a sum with DoRA", "a sum with IA3"),
        *("a sum with a bias and DoRA", "a sum with a bottleneck", "a router"),
    ],
)
def test_adapters_that_no_slot_holds(make, advice, follow, unchecked):
    adapters = make()
    with pytest.raises(SelectionError) as error:
        AdapterBank(MODEL, {"a": adapters})
    given = [text for text in (NEAREST, MERGE, STACK) if text in str(error.value)]
    assert given == [advice]
    np.testing.assert_allclose(follow(adapters), swap_adapters(MODEL, adapters)(X), atol=1e-5)


@pytest.mark.parametrize(
    ("make", "can_cut"),
    [(lambda: set_of(rank=2), True), (lambda: biased(2), False), (lambda: set_of("pissa"), False)],
)
def test_a_fixed_bank_says_how_to_make_room(make, can_cut, unchecked):
    adapters, bank = make(), AdapterBank(MODEL, {"a": set_of()}, fixed=True)
    with pytest.raises(SelectionError) as error:
        bank.add(adapters, "b")
    message = str(error.value)
    assert "bank.remove(name)" in message
    assert ("to_lora(swap_adapters(model, adapters), rank=1)" in message) == can_cut
    assert "AdapterBank(model, {'b': adapters})" in message
    assert AdapterBank(MODEL, {"b": adapters}).slots["b"] == 1
    if can_cut:
        bank.remove("a")
        assert bank.add(as_lora(adapters, rank=1), "b") == 1


@pytest.mark.parametrize(
    "make",
    [lambda: set_of("pissa"), biased, lambda: set_of("bottleneck")],
    ids=["PiSSA", "bias", "bottleneck"],
)
def test_adapters_that_cannot_train_in_a_bank_train_in_a_net(make, unchecked):
    adapters = make()
    bank = AdapterBank(MODEL, {"a": adapters})
    with pytest.raises(
        SelectionError, match=r"Net\(swap_adapters\(model, bank.adapters\('a'\)\)\)"
    ):
        bank.optimiser(optax.sgd, {"a": 1e-3})
    trainable, _ = Net(swap_adapters(MODEL, bank.adapters("a"))).partition()
    assert jax.tree.leaves(eqx.filter(trainable, eqx.is_inexact_array))


def test_other_advice_of_a_bank(unchecked):
    adapters, xs = set_of(), jnp.stack([X, X])
    adapted = swap_adapters(MODEL, adapters)
    with pytest.raises(SelectionError, match=r"AdapterBank\(unwrap_lora\(model\), {'name'"):
        AdapterBank(adapted)
    bank = AdapterBank(unwrap_lora(adapted), {"name": extract_adapters(adapted)})
    with pytest.raises(SelectionError, match=r"bank\.replace\('name', adapters\)"):
        bank.add(adapters, "name")
    assert bank.replace("name", adapters) == 1
    with pytest.raises(SelectionError, match=r"bank\.snapshot\(\)\.model.*at_slot"):
        jax.jit(lambda x: bank(x, 1))(X)
    each = jax.jit(
        lambda model, xs, slots: jax.vmap(lambda x, slot: at_slot(model, slot)(x))(xs, slots)
    )
    ys = each(bank.snapshot().model, xs, jnp.asarray([0, 1]))
    np.testing.assert_allclose(ys, jnp.stack([MODEL(X), adapted(X)]), atol=1e-6)
    with pytest.raises(SelectionError, match=r"optax\.adam\(lambda step: rate \* schedule"):
        bank.optimiser(optax.adam, {"name": lambda step: 1e-3})
    optimiser = bank.optimiser(
        lambda rate: optax.adam(lambda step: rate * jnp.exp(-step)), {"name": 1e-3}
    )
    trainable, _ = bank.partition()
    with jax.numpy_dtype_promotion("standard"):  # optax needs it
        updates, _ = optimiser.update(trainable, optimiser.init(trainable), trainable)
    assert jnp.any(updates.layers[0].lora_Bt != 0)
