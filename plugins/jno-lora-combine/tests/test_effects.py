"""`adapter_effects` and `plot_adapters`: what an adapter did to the matrices of a model."""

import dataclasses
import math
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.core.toys import ToyConv, ToyLinear, ToyScale, ToyStacked

from jno.lora import MissingLibraryError, Net, SelectionError, WrapperError, apply_lora, lora_report
from jno_lora_combine import AdapterEffects, adapter_effects, plot_adapters


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


class Bias(ToyScale):
    def merge(self):
        return eqx.tree_at(lambda m: m.bias, self.base, self.base.bias + self.gain - 1)


class Counted(eqx.nn.Linear):
    """A layer with a count beside its arrays, and with no bias."""

    count: jax.Array

    def __init__(self, key):
        super().__init__(4, 3, use_bias=False, key=key)
        self.count = jnp.asarray(7)


def test_kernels_are_flattened_vectors_are_one_column_and_integers_have_no_row(getkey):
    kernel = eqx.nn.Conv2d(3, 2, 2, key=getkey())
    linear = eqx.nn.Linear(3, 2, key=getkey())
    model = {
        "conv": adapted(kernel, ToyConv, getkey, delta=jnp.ones_like(kernel.weight)),
        "bias": adapted(linear, Bias, getkey, gain=2 * jnp.ones(2)),
        "count": adapted(Counted(getkey()), ToyLinear, getkey, lora_B=jnp.ones((3, 3))),
    }
    assert [(row.label, row.shape, row.effective_rank) for row in adapter_effects(model)] == [
        ("bias/bias", (2, 1), pytest.approx(1)),
        ("conv/weight", (2, 12), pytest.approx(1)),
        ("count/weight", (3, 4), pytest.approx(1)),
    ]


def test_a_stack_has_a_row_for_each_slice(getkey):
    make = eqx.filter_vmap(lambda key: eqx.nn.Linear(3, 2, key=key))
    stack = apply_lora(
        {"blocks": make(jax.random.split(getkey(), 2))}, 2, 2.0, key=getkey(), wrapper=ToyStacked
    )
    moved = stack["blocks"].lora_B.at[1].set(jnp.eye(2))
    stack = eqx.tree_at(lambda m: m["blocks"].lora_B, stack, moved)
    first, second = adapter_effects(stack)
    numbers = (first.label, first.relative_norm, first.effective_rank)
    assert numbers == ("blocks/weight[0]", 0, 0) and first.singular_values == (0, 0)
    assert (second.part, second.shape) == ((1,), (2, 3))
    A = np.asarray(stack["blocks"].lora_A[1])
    assert second.singular_values == pytest.approx(np.linalg.svd(A)[1], rel=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_an_update_below_the_rounding_of_the_weight_is_seen(dtype, getkey):
    layer = eqx.nn.Linear(8, 8, key=getkey())
    layer = eqx.tree_at(lambda m: m.weight, layer, layer.weight.astype(dtype))
    wrapper = ToyLinear(layer, 1, 1.0, key=getkey())
    factors = jnp.ones((1, 8)), 1e-5 * jnp.ones((8, 1))
    wrapper = eqx.tree_at(lambda w: (w.lora_A, w.lora_B), wrapper, factors)
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


class Broken(ToyLinear):
    def merge(self):
        raise KeyError("a bug")


class Other(ToyLinear):
    def merge(self):
        return eqx.nn.Identity()


def test_adapters_that_cannot_be_merged_are_named(model, getkey):
    specs = [{"target": "head", "wrapper": Unmergeable}, {"wrapper": ToyLinear}]
    effects = adapter_effects(apply_lora(model, 1, key=getkey(), specs=specs))
    assert effects.left_out == ("head",) and len(effects) == 2
    assert str(effects).endswith("Cannot be merged: head")
    broken = apply_lora(model, 1, key=getkey(), target="head", wrapper=Broken)
    with pytest.raises(WrapperError, match=r"Broken at 'head'.*KeyError"):
        adapter_effects(broken)
    with pytest.raises(WrapperError, match=r"'head': this is a template.*Give the model itself"):
        adapter_effects(eqx.filter_eval_shape(lambda: broken))
    other = apply_lora(model, 1, key=getkey(), target="head", wrapper=Other)
    with pytest.raises(WrapperError, match=r"Other at 'head' .*`merge\(\)` must return a layer"):
        lora_report(other, merge_error=True)


def test_a_merge_that_casts_to_the_layers_own_dtype_is_right(getkey):
    class Casting(ToyScale):
        def merge(self):
            weight = (self.gain * self.base.weight).astype(jnp.float32)
            return eqx.tree_at(lambda m: m.weight, self.base, weight)

    wrapper = Casting(eqx.nn.Linear(3, 2, key=getkey()), 1, 1.0, key=getkey())
    wrapper = eqx.tree_at(lambda w: w.gain, wrapper, 2 * jnp.ones(()))
    assert adapter_effects([wrapper]).rows[0].relative_norm == pytest.approx(1.0, rel=1e-6)


# --- pictures


@pytest.fixture(scope="module")
def effects():
    """Of PiSSA adapters around a convolution and two linear layers, that have been moved."""
    model = [
        eqx.nn.Conv2d(2, 3, 2, key=jax.random.key(0)),
        eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(1)),
    ]
    net = Net(model).freeze().lora(2, wrapper="pissa")
    trainable, _ = net.partition()
    return adapter_effects(net.update(jax.tree.map(lambda x: 1.5 * x, trainable)).module)


def test_effects_are_a_bar_for_each_matrix_and_a_line_for_each_spectrum(effects, tmp_path):
    figure = plot_adapters(effects, tmp_path / "effects.svg")
    assert [row.label for row in effects] == ["0/weight", "1/layers/0/weight", "1/layers/1/weight"]
    sizes, ranks, spectra = figure.axes
    assert [bar.get_width() for bar in sizes.patches] == [r.relative_norm for r in effects]
    assert [bar.get_width() for bar in ranks.patches] == [r.effective_rank for r in effects]
    assert [text.get_text() for text in sizes.get_yticklabels()] == [r.label for r in effects]
    # Two triplets of the weight were scaled: a spectrum of two values.
    assert [len(line.get_ydata()) for line in spectra.lines] == [2, 2, 2]
    assert "<svg" in (tmp_path / "effects.svg").read_text()


@pytest.mark.parametrize("number", [math.inf, math.nan])
def test_values_that_are_not_finite_have_no_bar(effects, number):
    row, *others = effects.rows
    values = (number, *row.singular_values[1:])
    bad = dataclasses.replace(row, relative_norm=number, singular_values=values)
    figure = plot_adapters(AdapterEffects((bad, *others)))
    assert math.isnan(figure.axes[0].patches[0].get_width())
    assert len(figure.axes[2].lines[0].get_ydata()) == 1
    assert figure.axes[2].get_yscale() == "log"
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_pictures_that_have_little_or_nothing_to_show(effects, model, monkeypatch):
    zeros = dataclasses.replace(effects.rows[0], singular_values=(0.0, 0.0))
    assert plot_adapters(AdapterEffects((zeros,))).axes[2].get_yscale() == "linear"
    many = plot_adapters(AdapterEffects((effects.rows[0],) * 500))  # still fit on a page
    assert many.get_figheight() == 14 and len(many.axes[0].get_yticks()) == 56
    with pytest.raises(SelectionError, match="no adapter that could be drawn"):
        plot_adapters(model)
    with pytest.raises(SelectionError, match="cannot be merged: head"):
        plot_adapters(Net(model).lora(1, target="head", wrapper=Unmergeable).module)
    for module in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "jno_lora_combine._figure")
    with pytest.raises(MissingLibraryError, match=r'pip install "jno-lora\[plot\]"'):
        plot_adapters(effects)
