"""Sets and files of adapters whose layers have another precision than those they were made for."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.zoo.combining._tools import trained

from jno.lora import (
    Net,
    combine,
    extract_adapters,
    load_adapters,
    merge_lora,
    save_adapters,
    swap_adapters,
)
from jno.lora.types import LayerForm


def cast(tree, dtype):
    return jax.tree.map(lambda a: a.astype(dtype) if eqx.is_inexact_array(a) else a, tree)


@pytest.fixture
def master(getkey):
    stack = eqx.filter_vmap(lambda key: eqx.nn.Linear(5, 4, key=key))
    return [eqx.nn.Linear(5, 4, key=getkey()), stack(jax.random.split(getkey(), 2))]


@pytest.mark.parametrize("variant", ["lora", "pissa"])
def test_numpys_64_bits_take_the_adapters_of_half_precision_and_give_them_back(
    variant, master, tmp_path
):
    half = cast(master[:1], jnp.bfloat16)
    adapted = trained(half, variant, 1)
    save_adapters(adapted, tmp_path / "half")
    wide = [jax.tree.map(lambda a: np.asarray(a, np.float64), master[0])]
    loaded = load_adapters(wide, tmp_path / "half")
    merged = merge_lora(loaded)[0].weight
    assert type(merged) is np.ndarray and merged.dtype == np.float64
    expected = merge_lora(load_adapters(master[:1], tmp_path / "half"))[0].weight
    np.testing.assert_allclose(merged, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    assert eqx.tree_equal(swap_adapters(half, extract_adapters(loaded)), adapted, typematch=True)


@pytest.mark.parametrize("variant", ["lora", "pissa"])
def test_a_net_keeps_and_activates_a_set_of_another_precision(variant, master):
    half = cast(master, jnp.bfloat16)
    adapters = extract_adapters(trained(master, variant, 1))
    net = Net(half).freeze().add_adapter("wide", adapters).activate("wide")
    assert eqx.tree_equal(net.module, swap_adapters(half, adapters), typematch=True)
    kept = net.deactivate().adapter("wide")
    assert eqx.tree_equal(jax.tree.leaves(kept), jax.tree.leaves(adapters), typematch=True)
    assert net.module[0].weight is half[0].weight
    # The set says which layer it is around now.
    assert {dtype for path in kept for _, _, dtype in kept[path].layer.arrays} == {"bfloat16"}


def test_sets_for_two_precisions_of_one_base_are_combined(master):
    half = cast(master, jnp.bfloat16)
    one, other = trained(master, "lora", 1), trained(half, "lora", 2)
    both = combine([extract_adapters(one), extract_adapters(other)], [1.0, 1.0])
    moved = swap_adapters(master, extract_adapters(other))
    alike = combine([extract_adapters(one), extract_adapters(moved)], [1.0, 1.0])
    assert eqx.tree_equal(both, alike, typematch=True)


KINDS = [
    {"bfloat16", "float16", "float32", "float64", "float8_e4m3fn"},
    {"complex64", "complex128"},
    {"int32", "int64"},
    {"uint8"},
    {"bool"},
    {"key<fry>"},
]


def test_dtypes_are_of_one_kind_if_only_their_precision_differs():
    def kinds(dtype, shape=(4, 5)):
        return LayerForm("Linear", (("weight", shape, dtype),)).kinds

    for kind, other in itertools.product(KINDS, KINDS):
        for one, two in itertools.product(kind, other):
            assert (kinds(one) == kinds(two)) is (kind is other), (one, two)
            assert kinds(one) != kinds(two, (5, 4))
