"""Many adapters on one base in one batch, each example with its own."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import pytest

from jno.lora import (
    AdapterSet,
    SelectionError,
    combine,
    extract_adapters,
    stack_adapters,
    swap_adapters,
    to_lora,
)
from jno_lora_zoo import LoRALinear

from ._tools import layers, trained

OWN = [0, 2, 1, 2, 2, 0]
BATCH = len(OWN)
WIDTH = 12


def model_of(key):
    return eqx.nn.Sequential([eqx.nn.Linear(WIDTH, WIDTH, key=k) for k in jax.random.split(key, 2)])


def own_adapter(model, stacked, index, x):
    """The recipe of the documentation."""
    adapters = jax.tree.map(lambda a: a[index], stacked)
    return swap_adapters(model, adapters)(x)


@pytest.mark.parametrize("variant", ["lora", "dora", "pissa"])
def test_each_example_uses_its_own_adapter(variant, getkey):
    model, x = model_of(getkey()), jax.random.normal(getkey(), (BATCH, WIDTH))
    adapted = [trained(model, variant, seed, rank=1) for seed in range(3)]
    stacked = stack_adapters([extract_adapters(one) for one in adapted])
    run = eqx.filter_jit(eqx.filter_vmap(own_adapter, in_axes=(None, None, 0, 0)))
    out = run(model, stacked, jnp.asarray(OWN), x)
    expected = jnp.stack([adapted[i](x[n]) for n, i in enumerate(OWN)])
    assert jnp.allclose(out, expected, rtol=1e-4, atol=1e-4)


def largest_array(model, adapted, x):
    """The size of the largest array in the recipe's program, with nothing simplified away."""
    stacked = stack_adapters([extract_adapters(one) for one in adapted])
    run = eqx.filter_vmap(own_adapter, in_axes=(None, None, 0, 0))
    arrays, static = eqx.partition((model, stacked), eqx.is_array)

    def program(arrays, own, x):
        return run(*eqx.combine(arrays, static), own, x)

    jaxpr = jax.make_jaxpr(program)(arrays, jnp.asarray(OWN), x)
    return max(var.aval.size for eqn in all_equations(jaxpr.jaxpr) for var in eqn.outvars)


def all_equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for value in eqn.params.values():
            inner = getattr(value, "jaxpr", value)  # closed, or not
            if hasattr(inner, "eqns"):
                yield from all_equations(inner)


def test_the_base_is_not_copied_for_the_examples(getkey):
    model, x = model_of(getkey()), jax.random.normal(getkey(), (BATCH, WIDTH))
    weights = WIDTH * WIDTH
    lora = [trained(model, "lora", seed, rank=1) for seed in range(3)]
    assert largest_array(model, lora, x) < weights
    # PiSSA's own weight differs with the adapter. As plain LoRA it does not.
    pissa = [trained(model, "pissa", seed, rank=1) for seed in range(3)]
    assert largest_array(model, pissa, x) == BATCH * weights
    converted = [to_lora(one)[0] for one in pissa]
    assert largest_array(model, converted, x) <= weights


def test_the_stack_of_a_scanned_layer_gets_one_axis_more():
    sets = [extract_adapters(trained(layers(), "lora", seed, target="stack")) for seed in (1, 2, 3)]
    stacked = stack_adapters(sets)
    assert stacked["stack"].state["lora_A"].shape == (3, 2, 2, 4)
    assert eqx.tree_equal(jax.tree.map(lambda a: a[1], stacked), sets[1])


def test_sets_of_other_ranks_are_brought_to_one():
    sets = [
        extract_adapters(trained(layers(), "lora", rank, rank=rank, target="linear"))
        for rank in (1, 3)
    ]
    same = [combine([one], [1.0], "svd", rank=3) for one in sets]
    assert stack_adapters(same)["linear"].state["lora_B"].shape == (2, 4, 3)


def test_every_difference_is_listed():
    model = layers()
    one = extract_adapters(trained(model, "lora", 1))
    other = extract_adapters(trained(model, "dora", 2, rank=1, target="linear"))
    half = dataclasses.replace(
        one["stack"], state=jtu.tree_map(lambda a: a.astype(jnp.bfloat16), one["stack"].state)
    )
    other = AdapterSet({**other.adapters, "stack": half, "more": one["linear"]})
    with pytest.raises(SelectionError) as error:
        stack_adapters([one, other])
    message = str(error.value)
    for line in (
        "convolution: set 1 has no adapter there",
        "more: set 0 has no adapter there",
        "linear, rank: 2 in set 0, 1 in set 1",
        "linear, magnitude: none in set 0, float32[4] in set 1",
        "LoRALinear in set 0, jno_lora_zoo.adapters.DoRALinear in set 1",
        "stack, lora_A: float32[2, 2, 4] in set 0, bfloat16[2, 2, 4] in set 1",
    ):
        assert line in message


def test_a_class_that_was_defined_twice_is_two_classes():
    def defined():
        class Mine(LoRALinear):
            pass

        return Mine

    model = {"linear": layers()["linear"]}
    sets = [extract_adapters(trained(model, defined(), 1)) for _ in range(2)]
    with pytest.raises(SelectionError, match=r"linear: .*Mine in set 1 is another class than in"):
        stack_adapters(sets)


def test_the_axes_of_a_stack_must_be_the_same():
    one = extract_adapters(trained(layers(), "lora", 1))
    form = dataclasses.replace(one["stack"].layer, stack_ndim=0)
    other = AdapterSet({**one.adapters, "stack": dataclasses.replace(one["stack"], layer=form)})
    with pytest.raises(SelectionError, match="stack, axes of a stack: 1 in set 0, 0 in set 1"):
        stack_adapters([one, other])


def test_no_sets():
    with pytest.raises(SelectionError, match="no sets to stack"):
        stack_adapters([])
