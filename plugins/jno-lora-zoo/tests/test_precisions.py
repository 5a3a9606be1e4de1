"""Adapters whose layers have another precision than those they were made for, or too little."""

import itertools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo_cases import perturb
from zoo_cases.models import trained

import jno_lora_zoo
from jno.lora import (
    LayerForm,
    Net,
    apply_lora,
    extract_adapters,
    load_adapters,
    lora_report,
    merge_lora,
    save_adapters,
    swap_adapters,
)
from jno_lora_combine import combine


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


# --- the error of a merge into the dtype of the base


def adapted(name, dtype, size, getkey):
    layer = eqx.nn.Linear(24, 16, key=getkey(), dtype=dtype)
    return perturb(apply_lora([layer], 4, 4.0, key=getkey(), wrapper=name), size)


@pytest.mark.parametrize("name", ["LoRALinear", "DoRALinear", "PiSSALinear"])
def test_it_is_what_rounding_the_merged_weight_takes_of_the_update(name, getkey):
    model = adapted(name, jnp.bfloat16, 1e-2, getkey)
    (row,) = lora_report(model, merge_error=True)
    (wrapper,) = model
    # By hand, in NumPy: the law on the weight that the base holds.
    wide = eqx.tree_at(lambda w: w.base.weight, wrapper, wrapper.base.weight.astype(jnp.float32))
    exact, before = (np.asarray(x.weight, np.float64) for x in (wide.merge(), wide.unwrap()))
    merged = np.asarray(wrapper.merge().weight.astype(jnp.float32), np.float64)
    expected = np.linalg.norm(merged - exact) / np.linalg.norm(exact - before)
    assert row.merge_error == pytest.approx(expected, rel=1e-3)
    assert 0 < row.merge_error < 10
    assert Net(model).summary().rows[0].merge_error is None  # unless it is asked for


def test_an_update_below_the_resolution_of_the_dtype_is_lost_whole(getkey):
    layer = eqx.nn.Linear(8, 8, key=getkey(), dtype=jnp.bfloat16)
    layer = eqx.tree_at(lambda m: m.weight, layer, jnp.ones_like(layer.weight))
    wrapper = jno_lora_zoo.IA3Linear(layer, 1, 1.0, key=getkey())
    wrapper = eqx.tree_at(lambda w: w.scale, wrapper, jnp.full(8, 1 + 1e-4))
    (row,) = lora_report(wrapper, merge_error=True)
    assert row.merge_error == pytest.approx(1.0)


def test_a_layer_that_nothing_changed_has_none_and_an_adapter_of_nan_nan(getkey):
    layer = eqx.nn.Linear(4, 4, key=getkey(), dtype=jnp.bfloat16)
    report = lora_report(apply_lora([layer], 2, key=getkey()), merge_error=True)
    assert report.rows[0].merge_error is None
    (line,) = (line for line in str(report).splitlines() if "LoRALinear" in line)
    assert line.split()[-1] == "-"
    model = adapted("LoRALinear", jnp.float16, math.nan, getkey)
    (row,) = lora_report(model, merge_error=True)
    assert row.merge_error is not None and math.isnan(row.merge_error)


def test_a_smaller_update_loses_more_and_float32_next_to_nothing(getkey):
    small, large, full = (
        lora_report(adapted("LoRALinear", dtype, size, getkey), merge_error=True)
        .rows[0]
        .merge_error
        for dtype, size in ((jnp.bfloat16, 1e-3), (jnp.bfloat16, 0.3), (jnp.float32, 0.3))
    )
    assert small > 2 * large > 1000 * full > 0
