"""`adapter_effects`: what an adapter did to the matrices of a model."""

import math
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.core.toys import ToyConv, ToyLinear, ToyScale, ToyStacked, UserEmbedding

from jno.lora import (
    WrapperError,
    adapter_effects,
    apply_lora,
    lora_report,
)


def adapted(layer, cls, getkey, **fields):
    """`layer` in an adapter, some of whose fields have been trained."""
    wrapper = cls(layer, 4, 4.0, key=getkey())
    names = list(fields)
    return eqx.tree_at(lambda w: [getattr(w, n) for n in names], wrapper, [*fields.values()])


def orthonormal(rows, columns):
    return np.linalg.qr(np.random.default_rng(0).normal(size=(rows, columns)))[0]


def test_the_numbers_are_those_of_the_update(getkey):
    layer = eqx.nn.Linear(5, 4, key=getkey())
    B = jnp.asarray(orthonormal(4, 4) * np.array([4.0, 2.0, 2.0, 0.0]), jnp.float32)
    A = jnp.asarray(orthonormal(5, 4).T, jnp.float32)
    (row,) = adapter_effects(adapted(layer, ToyLinear, getkey, lora_A=A, lora_B=B))
    assert (row.path, row.array, row.part, row.label) == ("", "weight", (), "weight")
    assert (row.wrapper, row.shape) == (ToyLinear, (4, 5))
    assert row.singular_values == pytest.approx((4, 2, 2, 0), rel=1e-6)
    assert row.relative_norm == pytest.approx(math.sqrt(24) / np.linalg.norm(layer.weight))
    # Half of the weight in one direction, a quarter in each of two: entropy 1.5 log 2.
    assert row.effective_rank == pytest.approx(2**1.5, rel=1e-6)
    # Equal directions count in full.
    layer = eqx.nn.Linear(6, 6, key=getkey())
    half = jnp.asarray([2.0, 2.0, 2.0, 1.0, 1.0, 1.0])
    layer = eqx.tree_at(lambda m: m.weight, layer, jnp.eye(6))
    (row,) = adapter_effects(adapted(layer, ToyScale, getkey, gain=half))
    assert row.effective_rank == pytest.approx(3)
    assert row.relative_norm == pytest.approx(math.sqrt(3 / 6))


def test_kernels_are_flattened_and_vectors_are_one_column(getkey):
    kernel = eqx.nn.Conv2d(3, 2, 2, key=getkey())
    delta = jnp.ones_like(kernel.weight)
    model = {"conv": adapted(kernel, ToyConv, getkey, delta=delta)}
    (row,) = adapter_effects(model)
    assert (row.label, row.shape, row.effective_rank) == ("conv/weight", (2, 12), pytest.approx(1))

    class Bias(ToyScale):
        def merge(self):
            return eqx.tree_at(lambda m: m.bias, self.base, self.base.bias + self.gain - 1)

    (row,) = adapter_effects(
        adapted(eqx.nn.Linear(3, 2, key=getkey()), Bias, getkey, gain=2 * jnp.ones(2))
    )
    assert (row.array, row.shape, row.effective_rank) == ("bias", (2, 1), pytest.approx(1))


def test_a_stack_has_a_row_for_each_slice(getkey):
    make = eqx.filter_vmap(lambda key: eqx.nn.Linear(3, 2, key=key))
    stack = apply_lora(
        {"blocks": make(jax.random.split(getkey(), 2))}, 2, 2.0, key=getkey(), wrapper=ToyStacked
    )
    moved = stack["blocks"].lora_B.at[1].set(jnp.eye(2))
    stack = eqx.tree_at(lambda m: m["blocks"].lora_B, stack, moved)
    first, second = adapter_effects(stack)
    assert (first.label, first.relative_norm) == ("blocks/weight[0]", 0)
    assert (second.part, second.shape) == ((1,), (2, 3))
    A = np.asarray(stack["blocks"].lora_A[1])
    assert second.singular_values == pytest.approx(np.linalg.svd(A)[1], rel=1e-5)


def test_an_untrained_adapter_has_a_row_of_zeros_for_each_matrix(model, getkey):
    effects = adapter_effects(
        apply_lora(model, 1, key=getkey(), wrapper=[ToyLinear, UserEmbedding])
    )
    assert [row.label for row in effects] == [
        "embedding/weight",
        "encoder/0/weight",
        "encoder/1/weight",
        "head/weight",
    ]
    assert {(row.relative_norm, row.effective_rank) for row in effects} == {(0, 0)}
    assert effects.rows[0].singular_values == (0, 0, 0)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_an_update_below_the_rounding_of_the_weight_is_seen(dtype, getkey):
    layer = eqx.nn.Linear(8, 8, key=getkey())
    layer = eqx.tree_at(lambda m: m.weight, layer, layer.weight.astype(dtype))
    delta = 1e-5 * jnp.ones((8, 1))
    fields = {"lora_A": jnp.ones((1, 8)), "lora_B": delta}
    wrapper = ToyLinear(layer, 1, 1.0, key=getkey())
    wrapper = eqx.tree_at(lambda w: (w.lora_A, w.lora_B), wrapper, (*fields.values(),))
    (row,) = adapter_effects(wrapper)
    assert row.singular_values[0] == pytest.approx(8e-5, rel=1e-2)
    assert row.effective_rank == pytest.approx(1, rel=1e-2)


def test_nan_and_an_infinite_change_are_told(getkey):
    layer = eqx.nn.Linear(2, 2, key=getkey())
    (row,) = adapter_effects(adapted(layer, ToyScale, getkey, gain=jnp.asarray([1.0, jnp.nan])))
    assert math.isnan(row.relative_norm) and math.isnan(row.effective_rank)
    layer = jax.tree.map(lambda x: 0 * x, layer)
    (row,) = adapter_effects(adapted(layer, ToyLinear, getkey, lora_B=jnp.eye(2)))
    assert row.relative_norm == math.inf


class Unmergeable(ToyLinear):
    def merge(self):
        raise WrapperError("cannot be merged")


def test_an_adapter_that_cannot_be_merged_is_named(model, getkey):
    specs = [{"target": "head", "wrapper": Unmergeable}, {"wrapper": ToyLinear}]
    effects = adapter_effects(apply_lora(model, 1, key=getkey(), specs=specs))
    assert effects.left_out == ("head",)
    assert len(effects) == 2
    assert str(effects).endswith("Cannot be merged: head")


class Counted(eqx.nn.Linear):
    """A layer with a count beside its arrays, and with no bias."""

    count: jax.Array

    def __init__(self, key):
        super().__init__(4, 3, use_bias=False, key=key)
        self.count = jnp.asarray(7)


def test_integers_of_a_layer_have_no_row(getkey):
    layer = adapted(Counted(getkey()), ToyLinear, getkey, lora_B=jnp.ones((3, 3)))
    assert [row.path for row in adapter_effects([layer]).rows] == ["0"]


def test_a_merge_that_fails_otherwise_is_an_error_with_the_path(model, getkey):
    class Broken(ToyLinear):
        def merge(self):
            raise KeyError("a bug")

    broken = apply_lora(model, 1, key=getkey(), target="head", wrapper=Broken)
    with pytest.raises(WrapperError, match=r"Broken at 'head'.*KeyError"):
        adapter_effects(broken)
    with pytest.raises(WrapperError, match=r"'head': this is a template.*Give the model itself"):
        adapter_effects(eqx.filter_eval_shape(lambda: broken))


def test_it_prints_as_a_table(getkey):
    layer = eqx.nn.Linear(3, 2, key=getkey())
    effects = adapter_effects([adapted(layer, ToyScale, getkey, gain=3 * jnp.ones(2))])
    (line,) = (line for line in str(effects).splitlines() if "ToyScale" in line)
    assert line.split()[:6] == ["0/weight", "ToyScale", "2", "x", "3", "2.00e+00"]
    assert repr(effects) == "AdapterEffects(1 matrices, 0 left out)"
    assert "0/weight" in effects._repr_html_()


def test_without_matplotlib_the_numbers_are_there_and_the_picture_says_what_to_install():
    code = """
import sys
sys.modules["matplotlib"] = None
from jno.lora import MissingLibraryError, adapter_effects, plot_adapters
assert len(adapter_effects({})) == 0
try:
    plot_adapters({})
except MissingLibraryError as err:
    print(err)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("A picture needs matplotlib, which is not installed.")
    assert 'pip install "jno-lora[plot]"' in done.stdout


def test_a_merge_into_something_else_is_named_with_its_path(getkey):
    class Other(ToyScale):
        def merge(self):
            return eqx.nn.Identity()

    adapted = apply_lora([eqx.nn.Linear(3, 2, key=getkey())], 1, key=getkey(), wrapper=Other)
    with pytest.raises(WrapperError, match=r"the Other at '0' .*`merge\(\)` must return a layer"):
        lora_report(adapted, merge_error=True)


def test_a_merge_that_casts_to_the_layers_own_dtype_is_right(getkey):
    class Casting(ToyScale):
        def merge(self):
            weight = (self.gain * self.base.weight).astype(jnp.float32)
            return eqx.tree_at(lambda m: m.weight, self.base, weight)

    wrapper = Casting(eqx.nn.Linear(3, 2, key=getkey()), 1, 1.0, key=getkey())
    wrapper = eqx.tree_at(lambda w: w.gain, wrapper, 2 * jnp.ones(()))
    assert adapter_effects([wrapper]).rows[0].relative_norm == pytest.approx(1.0, rel=1e-6)
