"""A compiled step serves every model of one form: other values are never traced again."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from zoo_cases.models import compilations

from jno.lora import apply_lora, extract_adapters, lora_trainable_filter, merge_lora, swap_adapters
from jno_lora_combine import scale_adapters

METHODS = ("lora", "dora", "pissa", "vera", "oft")


class Step:
    """A jitted training step that counts how often it is traced."""

    def __init__(self):
        self.traces = 0

        def loss(trainable, frozen, x):
            self.traces += 1
            one, two = eqx.combine(trainable, frozen)
            return jnp.sum(two(jnp.tanh(one(x))) ** 2)

        self._step = jax.jit(jax.value_and_grad(loss))

    def __call__(self, model):
        trainable, frozen = eqx.partition(model, lora_trainable_filter(model))
        return self._step(trainable, frozen, jnp.ones(4))


def layers(seed=0):
    return [eqx.nn.Linear(4, 4, key=key) for key in jax.random.split(jax.random.key(seed))]


def adapted(variant, seed, *, base=0, alpha=2.0, **options):
    key = jax.random.key(seed)
    return apply_lora(layers(base), 2, alpha, key=key, wrapper=variant, options=options)


def moved(model):
    """As after training: other values in every array."""
    return jax.tree.map(lambda x: x + 1 if eqx.is_inexact_array(x) else x, model)


@pytest.mark.parametrize("variant", METHODS)
def test_seeds_bases_and_trained_values_share_one_trace(variant):
    step, first = Step(), adapted(variant, 1)
    other = moved(adapted(variant, 2))
    for model in (first, other, adapted(variant, 3, base=1)):
        step(model)
    step(swap_adapters(first, extract_adapters(other)))
    assert step.traces == 1
    if variant == "lora":  # a scaled set, and another alpha
        step(swap_adapters(first, scale_adapters(extract_adapters(first), 0.5)))
        assert step.traces == 1
        step(adapted(variant, 1, alpha=1.0))
        assert step.traces == 2
    if variant == "vera":  # whose seeds are arrays: they differ all the same
        assert step(moved(first))[0] != step(other)[0]


@pytest.mark.parametrize("variant", ["lora", "lokr"])
def test_a_sweep_of_multipliers_is_one_trace(variant):
    step = Step()
    model = moved(adapted(variant, 1, multiplier=0.5))

    def loss(value):
        values = [jnp.float32(value)] * len(model)
        return step(eqx.tree_at(lambda m: [one.multiplier for one in m], model, values))[0]

    losses = [loss(value) for value in (0.0, 0.5, 2.0)]
    assert step.traces == 1
    assert len(set(map(float, losses))) == 3


@pytest.mark.parametrize("variant", ["lora", "pissa"])
def test_nothing_is_compiled_to_adapt_merge_or_swap_once_more(variant):
    def everything(seed):
        model = moved(adapted(variant, seed, base=seed))
        merge_lora(model)
        swap_adapters(model, extract_adapters(model))

    everything(1)
    with compilations() as seen:
        everything(2)
    assert seen == []
    with compilations() as seen:  # they are seen
        jax.jit(lambda x: x * 7 - 5)(jnp.ones(3))
    assert seen
