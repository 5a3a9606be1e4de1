"""Many adapters on one base in one batch, each example with its own."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import pytest
from tests.core.test_options import OutputGain
from tests.core.test_shared_arrays import X, adapted as of_tied, mlp, moved, run
from tests.core.toys import shaken
from zoo_cases.models import layers, relative, trained, update, updates

from jno.lora import (
    AdapterSet,
    SelectionError,
    apply_lora,
    extract_adapters,
    lora_trainable_filter,
    resolve,
    swap_adapters,
)
from jno.lora.extending import equations_in
from jno_lora_combine import adapter_effects, combine, stack_adapters, take_adapters, to_lora
from jno_lora_zoo import LoRALinear

OWN = [0, 2, 1, 2, 2, 0]
BATCH = len(OWN)
WIDTH = 12


def model_of(key):
    return eqx.nn.Sequential([eqx.nn.Linear(WIDTH, WIDTH, key=k) for k in jax.random.split(key, 2)])


def own_adapter(model, stacked, index, x):
    """The recipe of the documentation."""
    return swap_adapters(model, take_adapters(stacked, index))(x)


serve = eqx.filter_jit(eqx.filter_vmap(own_adapter, in_axes=(None, None, 0, 0)))


def largest_array(model, adapted, x):
    """The size of the largest array in the recipe's program, with nothing simplified away."""
    stacked = stack_adapters([extract_adapters(one) for one in adapted])
    run = eqx.filter_vmap(own_adapter, in_axes=(None, None, 0, 0))
    arrays, static = eqx.partition((model, stacked), eqx.is_array)

    def program(arrays, own, x):
        return run(*eqx.combine(arrays, static), own, x)

    jaxpr = jax.make_jaxpr(program)(arrays, jnp.asarray(OWN), x)
    return max(var.aval.size for eqn in equations_in(jaxpr) for var in eqn.outvars)


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


@pytest.mark.parametrize("variant", ["lora", "rslora"])
def test_ranks_alphas_and_paths_may_differ_and_slot_0_is_the_base(variant, getkey):
    model, x = model_of(getkey()), jax.random.normal(getkey(), (BATCH, WIDTH))
    adapted = [
        trained(model, variant, 1, rank=1, alpha=3.0),
        trained(model, variant, 2, rank=3, alpha=2.0, target="1"),
        trained(model, variant, 3, rank=2, alpha=0.0, options={"multiplier": 0.7}),
        trained(model, variant, 4, rank=2, alpha=5.0, options={"multiplier": 0.7}),
    ]
    sets = [extract_adapters(one) for one in adapted]
    stacked = stack_adapters(sets, base_slot=True)
    assert stacked["layers/0"].rank == 2 and stacked["layers/1"].rank == 3
    own = [4, 0, 2, 1, 3, 0]
    out = serve(model, stacked, jnp.asarray(own), x)
    expected = jnp.stack([[model, *adapted][i](x[n]) for n, i in enumerate(own)])
    assert jnp.allclose(out, expected, rtol=1e-4, atol=1e-4)
    base = swap_adapters(model, take_adapters(stacked, 0))
    assert jnp.array_equal(jax.vmap(base)(x), jax.vmap(model)(x))
    larger = stack_adapters(sets, rank=5)
    assert {one.rank for one in larger.adapters.values()} == {5}
    assert jnp.allclose(serve(model, larger, jnp.asarray([3]), x[:1])[0], adapted[3](x[0]), 1e-4)


@pytest.mark.slow
def test_stacks_convolutions_and_half_precision_are_padded():
    sets = [
        extract_adapters(trained(layers(), "lora", rank, rank=rank, alpha=rank * 1.5))
        for rank in (1, 2)
    ]
    stacked = stack_adapters(sets, rank=50)  # more than a matrix allows
    for slot, one in enumerate(sets):
        for path, expected in updates(one).items():
            assert relative(update(take_adapters(stacked, slot)[path]), expected) < 1e-6
        # One scale: the factors are the same bits.
        B = stacked["stack"].state["lora_B"][slot]
        rank = one["stack"].rank
        assert jnp.array_equal(B[..., :rank], one["stack"].state["lora_B"])
        assert not jnp.any(B[..., rank:])
    assert stacked["stack"].state["lora_A"].shape == (2, 2, 3, 4)

    def halved(adapters):
        return jax.tree.map(lambda a: a.astype(jnp.bfloat16), adapters)

    (same,) = {a.dtype for a in jax.tree.leaves(stack_adapters([halved(one) for one in sets]))}
    assert same == jnp.bfloat16
    # Another scale would be rounded in bfloat16. A set that `combine` cut has another alpha.
    for other in (trained(layers(), "lora", 3, rank=2, alpha=0.7), None):
        other = halved(combine(sets[1:], [1.0]) if other is None else extract_adapters(other))
        scaled = stack_adapters([halved(sets[0]), other])
        found, expected = update(take_adapters(scaled, 1)["linear"]), update(other["linear"])
        assert relative(found, expected) < 1e-6


@pytest.mark.parametrize(
    ("variant", "dtype"), [("lora", jnp.uint32), ("pissa", jnp.int8), ("dora", jnp.int32)]
)
def test_each_example_uses_its_own_adapter_and_an_index_outside_nobody_elses(
    variant, dtype, getkey
):
    model, x = model_of(getkey()), jax.random.normal(getkey(), (4, WIDTH))
    adapted = [trained(model, variant, seed, rank=1) for seed in range(2)]
    stacked = stack_adapters([extract_adapters(one) for one in adapted])
    out = serve(model, stacked, jnp.asarray([0, 2, -1, 1]).astype(dtype), x)
    assert jnp.isnan(out[1:3]).all()
    expected = jnp.stack([adapted[0](x[0]), adapted[1](x[3])])
    assert jnp.allclose(out[jnp.asarray([0, 3])], expected, rtol=1e-4, atol=1e-4)
    for index in (2, -1, np.int64(2), jnp.asarray(-1)):
        with pytest.raises(SelectionError, match=r"There is no slot .*: the stack has 2, from 0"):
            take_adapters(stacked, index)
    with pytest.raises(SelectionError, match="not a set of adapters that stack_adapters made"):
        take_adapters(extract_adapters(adapted[0]), 0)


def test_every_difference_is_listed():
    model = layers()
    one = extract_adapters(trained(model, "lora", 1))
    other = extract_adapters(trained(model, "dora", 2, rank=1, target="linear"))
    half = dataclasses.replace(
        one["stack"], state=jtu.tree_map(lambda a: a.astype(jnp.bfloat16), one["stack"].state)
    )
    other = AdapterSet({**other.adapters, "stack": half})
    with pytest.raises(SelectionError) as error:
        stack_adapters([one, other])
    for line in (
        "LoRAConv'> in set 0, none in set 1",
        "LoRALinear'> in set 0, <class 'jno_lora_zoo.adapters.DoRALinear'> in set 1",
        "linear, rank: 2 in set 0, 1 in set 1",
        "linear, magnitude: float32[4] in set 1, none in set 0",
        "stack, lora_A: float32[2, 2, 4] in set 0, bfloat16[2, 2, 4] in set 1",
    ):
        assert line in str(error.value)


def defined_again():
    class Mine(LoRALinear):
        pass

    return Mine


def test_products_that_do_not_stack_are_told(getkey):
    model = model_of(getkey())
    sets = [extract_adapters(trained(model, "dora", seed)) for seed in (1, 2)]
    for asked in ({"base_slot": True}, {"rank": 4}):
        with pytest.raises(SelectionError, match=r"product .* base slot.*\n.*layers/0: a DoRALin"):
            stack_adapters(sets, **asked)
    lora = [extract_adapters(trained(model, "lora", 1, rank=rank)) for rank in (1, 3)]
    with pytest.raises(SelectionError, match=r"0: rank 3 in set 1, above 2\n(?s:.*)svd"):
        stack_adapters(lora, rank=2)
    with pytest.raises(SelectionError, match="an integer of at least 1"):
        stack_adapters(lora, rank=0)
    twice = [extract_adapters(trained(model, defined_again(), 1)) for _ in range(2)]
    with pytest.raises(SelectionError, match=r"0, class: .*Mine'> in set 0, .*Mine'> in set 1"):
        stack_adapters(twice)
    one = lora[0]["layers/0"]
    form = dataclasses.replace(one.layer, stack_ndim=1)
    odd = AdapterSet({"layers/0": dataclasses.replace(one, layer=form)})
    with pytest.raises(SelectionError, match="layers/0, axes of a stack: 0 in set 0, 1 in set 1"):
        stack_adapters([lora[0], odd])


@pytest.mark.parametrize("variant", ["vera", "lora-fa", "tied-lora"])
def test_a_vmap_over_a_stack_trains_each_set_with_its_own_frozen_arrays(variant, getkey):
    """The recipe of docs/training.md, against each set alone. The keys of the sets differ."""
    model, x = model_of(getkey()), jax.random.normal(getkey(), (2, WIDTH))

    def step(adapters, x):
        adapted = swap_adapters(model, adapters)
        trainable, frozen = eqx.partition(adapted, lora_trainable_filter(adapted))
        # An adapter of tied LoRA holds the array of all.
        loss = lambda t: jnp.sum(resolve(eqx.combine(t, frozen))(x) ** 2)  # noqa: E731
        stepped = jax.tree.map(
            lambda p, g: p - 0.1 * g, trainable, eqx.filter_grad(loss)(trainable)
        )
        return extract_adapters(eqx.combine(stepped, frozen))

    sets = [extract_adapters(trained(model, variant, seed, rank=2)) for seed in range(2)]
    constants = {"vera": "seed", "lora-fa": "lora_A"}.get(variant)
    together = eqx.filter_jit(eqx.filter_vmap(step))(stack_adapters(sets), x)
    for index, adapters in enumerate(sets):
        stepped = take_adapters(together, index)
        assert not eqx.tree_equal(stepped, adapters)
        if constants is not None:
            held = [s["layers/0"].state[constants] for s in (*sets, stepped)]
            assert not jnp.array_equal(held[0], held[1])
            assert jnp.array_equal(held[2], held[index])
        alone = jax.tree.leaves(step(adapters, x[index]))
        for a, b in zip(jax.tree.leaves(stepped), alone, strict=True):
            assert jnp.allclose(a, b, rtol=1e-4, atol=1e-4)


def test_adapters_without_a_rank_stack(model):
    adapted = shaken(apply_lora(model, key=jax.random.key(0), wrapper=OutputGain))
    adapters = extract_adapters(adapted)
    stacked = stack_adapters([adapters, adapters])
    assert stacked.adapters["head"].state["gain"].shape == (2, 2)


def test_sets_with_other_shared_arrays_do_not_stack():
    one = extract_adapters(of_tied())
    other = AdapterSet(one.adapters, {**one.shared, "tied-A": jnp.ones((3, 5))})
    with pytest.raises(
        SelectionError, match=r"shared arrays: \{'tied-A': 'float32\[2, 5\]', .*set 1"
    ):
        stack_adapters([one, other])


def test_sets_stack_with_their_shared_arrays():
    models = [of_tied(), moved(of_tied())]
    for model in (models[0], resolve(models[0])):
        assert len(adapter_effects(model)) == 3
    stacked = stack_adapters([extract_adapters(m) for m in models])
    assert stacked.shared["tied-A"].shape == (2, 2, 5)

    def of_slot(slot, x):
        own = swap_adapters(mlp(), take_adapters(stacked, slot))
        return resolve(own)(x)

    found = jax.vmap(of_slot)(jnp.array([1, 0]), jnp.asarray(X[:2]))
    expected = jnp.stack([run(models[1])[0], run(models[0])[1]])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
