"""Layers stacked along leading axes are adapted, run, merged and unwrapped one by one."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jno.lora import apply_lora, merge_lora, unwrap_lora

from .toys import ToyStacked, same, shaken

SIZE = 3


def stacked(axes, key):
    make = lambda key: eqx.nn.Linear(SIZE, SIZE, key=key)  # noqa: E731
    for _ in axes:
        make = eqx.filter_vmap(make)
    return make(jax.random.split(key, axes))


def slice_of(tree, index):
    return jax.tree.map(lambda x: x[index] if eqx.is_array(x) else x, tree)


@pytest.mark.parametrize("axes", [(2,), (2, 4)], ids=["one axis", "two axes"])
def test_each_slice_starts_from_values_of_its_own_and_is_merged_and_unwrapped(axes):
    plain = stacked(axes, jax.random.key(1))
    adapted = apply_lora(plain, 2, key=jax.random.key(2), wrapper=ToyStacked)
    assert adapted.lora_A.shape == (*axes, 2, SIZE) and adapted.lora_B.shape == (*axes, SIZE, 2)
    assert adapted.rank == 2
    assert len({*map(tuple, adapted.lora_A.reshape(-1, 2 * SIZE).tolist())}) == np.prod(axes)
    adapted = shaken(adapted)
    merged = merge_lora(adapted)
    assert jax.tree.structure(merged) == jax.tree.structure(adapted.base)
    index = tuple(n - 1 for n in axes)
    one_by_one = slice_of(adapted, index).merge()
    assert jnp.allclose(slice_of(merged, index).weight, one_by_one.weight, rtol=1e-6)
    assert not jnp.array_equal(merged.weight, adapted.base.weight)
    assert jnp.array_equal(adapted.weight, merged.weight)
    assert same(unwrap_lora(adapted), plain)


def test_scan_over_the_stack_is_the_loop_over_its_layers(getkey):
    plain = stacked((3,), getkey())
    adapted = shaken(apply_lora(plain, 1, key=getkey(), wrapper=ToyStacked))

    def run(layers, x):
        arrays, rest = eqx.partition(layers, eqx.is_array)
        step = lambda x, layer: (eqx.combine(layer, rest)(x), None)  # noqa: E731
        return jax.lax.scan(step, x, arrays)[0]

    x = jnp.arange(3.0)
    by_hand = x
    for index in range(3):
        by_hand = slice_of(adapted, index)(by_hand)
    assert jnp.allclose(run(adapted, x), by_hand, rtol=1e-5)
    assert jnp.allclose(run(merge_lora(adapted), x), by_hand, rtol=1e-5)
