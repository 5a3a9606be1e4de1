"""Sets and files of adapters whose layers have another precision than those they were made for."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.pairs import ALL, STRUCTURES

from jno.lora import (
    CheckpointError,
    Net,
    SelectionError,
    apply_lora,
    combine,
    extract_adapters,
    load_adapters,
    lora_trainable_filter,
    merge_lora,
    registered,
    save_adapters,
    swap_adapters,
)
from jno.lora._contract import zero_statistics
from jno.lora.types import LayerForm


def cast(tree, dtype):
    return jax.tree.map(lambda a: a.astype(dtype) if eqx.is_inexact_array(a) else a, tree)


def trained(model, wrapper, seed=1):
    """The adapted model, its adapters moved away from their start."""
    key, noise = jax.random.split(jax.random.key(seed))
    model = apply_lora(model, 2, 3.0, key=key, wrapper=wrapper)
    trains, rest = eqx.partition(model, lora_trainable_filter(model))
    return eqx.combine(jax.tree.map(lambda a: a + 0.3 * jax.random.normal(noise), trains), rest)


@pytest.fixture
def master(getkey):
    stack = eqx.filter_vmap(lambda key: eqx.nn.Linear(5, 4, key=key))
    return [eqx.nn.Linear(5, 4, key=getkey()), stack(jax.random.split(getkey(), 2))]


@pytest.mark.parametrize("variant", ["lora", "pissa"])
def test_numpys_64_bits_take_the_adapters_of_half_precision_and_give_them_back(
    variant, master, tmp_path
):
    half = cast(master[:1], jnp.bfloat16)
    adapted = trained(half, variant)
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
    adapters = extract_adapters(trained(master, variant))
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


@pytest.mark.parametrize("dtype", ["int32", "complex64"])
def test_another_kind_of_number_is_refused(dtype, master, tmp_path):
    adapted = trained(master[:1], "lora")
    other = [eqx.tree_at(lambda layer: layer.weight, master[0], jnp.ones((4, 5), dtype))]
    message = rf"0/weight: .* made for float32\[4, 5\], the Linear has {dtype}\[4, 5\]"
    with pytest.raises(SelectionError, match=message):
        swap_adapters(other, extract_adapters(adapted))
    save_adapters(adapted, tmp_path / "file")
    with pytest.raises(CheckpointError, match=message):
        load_adapters(other, tmp_path / "file")


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


OURS = {"jno-lora-zoo", "jno-lora-attention"}
METHODS = tuple(itertools.chain(*STRUCTURES.values()))


@pytest.mark.parametrize(("made_for", "dtype"), [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_the_adapters_of_all_plugins_take_the_dtype_of_the_layer_that_they_move_to(
    made_for, dtype, getkey
):
    nn, x = eqx.nn, jnp.ones(4)
    layers = [
        (nn.Embedding(5, 4, key=getkey()), [0]),
        (nn.MultiheadAttention(2, 4, key=getkey()), [jnp.ones((3, 4))] * 3),
        (nn.GRUCell(4, 4, key=getkey()), [x, x]),
        (nn.LSTMCell(4, 4, key=getkey()), [x, (x, x)]),
        (nn.WeightNorm(nn.Linear(4, 4, key=getkey())), [x]),
        (nn.ConvTranspose1d(4, 4, 2, key=getkey()), [jnp.ones((4, 3))]),
    ]

    def moved(layer, cls):
        old, new = ([cast(layer, name)] for name in (made_for, dtype))
        data = {"0": zero_statistics(cls, old[0]) or {}}
        adapted = apply_lora(old, 2, key=jax.random.key(0), wrapper=cls, statistics=data)
        return swap_adapters(new, extract_adapters(adapted))[0]

    def dtypes(layer, inputs):
        outputs = eqx.filter_eval_shape(lambda layer: layer(*cast(inputs, dtype)), layer)
        return {leaf.dtype for leaf in jax.tree.leaves(outputs)}

    seen, plugins = set(), [row for row in registered() if row.distribution in OURS]
    for row in (row for plugin in plugins for row in plugin.wrappers):
        if not (ALL or row.distribution != "jno-lora-zoo" or row.name.startswith(METHODS)):
            continue
        for layer, inputs in layers:
            if row.cls.applies_to(layer):
                adapter = eqx.filter_eval_shape(moved, layer, row.cls)
                assert dtypes(adapter, inputs) == {jnp.dtype(dtype)}, row.name
                if not row.name.startswith("Prefix"):  # cannot be merged
                    plain = eqx.filter_eval_shape(merge_lora, [adapter])
                    assert dtypes(plain[0], inputs) == {jnp.dtype(dtype)}, row.name
                seen.add(row.distribution)
    assert seen == OURS
