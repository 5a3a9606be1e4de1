"""`plot_adapters`."""

import dataclasses
import math

import equinox as eqx
import jax
import pytest

from jno.lora import (
    AdapterEffects,
    LoRALinear,
    Net,
    SelectionError,
    WrapperError,
    adapter_effects,
    plot_adapters,
)


@pytest.fixture(scope="module")
def trained():
    """Three PiSSA adapters, around a convolution and two linear layers, that have been moved."""
    model = [
        eqx.nn.Conv2d(2, 3, 2, key=jax.random.key(0)),
        eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(1)),
    ]
    net = Net(model).freeze().lora(2, wrapper="pissa")
    trainable, _ = net.partition()
    return net.update(jax.tree.map(lambda x: 1.5 * x, trainable)).module


def test_effects_are_a_bar_for_each_matrix_and_a_line_for_each_spectrum(trained, tmp_path):
    figure = plot_adapters(trained, tmp_path / "effects.svg")
    effects = adapter_effects(trained)
    assert [row.label for row in effects] == ["0/weight", "1/layers/0/weight", "1/layers/1/weight"]
    sizes, ranks, spectra = figure.axes
    assert [bar.get_width() for bar in sizes.patches] == [r.relative_norm for r in effects]
    assert [bar.get_width() for bar in ranks.patches] == [r.effective_rank for r in effects]
    assert [text.get_text() for text in sizes.get_yticklabels()] == [r.label for r in effects]
    # Two triplets of the weight were scaled: a spectrum of two values.
    assert [len(line.get_ydata()) for line in spectra.lines] == [2, 2, 2]
    assert "<svg" in (tmp_path / "effects.svg").read_text()


@pytest.mark.parametrize(("size", "scale"), [(1.0, "log"), (1e-3, "log"), (0.0, "linear")])
def test_singular_values_are_on_a_logarithmic_axis_unless_all_are_zero(trained, size, scale):
    row = adapter_effects(trained).rows[0]
    row = dataclasses.replace(row, singular_values=(size, size / 2))
    assert plot_adapters(AdapterEffects((row,))).axes[2].get_yscale() == scale


@pytest.mark.parametrize("number", [math.inf, math.nan])
def test_values_that_are_not_finite_have_no_bar(trained, number):
    row, *others = adapter_effects(trained).rows
    values = (number, *row.singular_values[1:])
    bad = dataclasses.replace(row, relative_norm=number, singular_values=values)
    figure = plot_adapters(AdapterEffects((bad, *others)))
    assert math.isnan(figure.axes[0].patches[0].get_width())
    assert len(figure.axes[2].lines[0].get_ydata()) == 1
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_hundreds_of_matrices_still_fit(trained):
    row = adapter_effects(trained).rows[0]
    pictures = [plot_adapters(AdapterEffects((row,) * n)) for n in (1, 60, 61, 500)]
    heights = [figure.get_figheight() for figure in pictures]
    assert heights == sorted(heights) and heights[0] < heights[1] and heights[-1] == 14
    assert [len(figure.axes[0].get_yticks()) for figure in pictures] == [1, 60, 31, 56]


def test_without_adapters_there_is_nothing_to_draw():
    class Unmergeable(LoRALinear):
        def merge(self):
            raise WrapperError("cannot be merged")

    model = {"head": eqx.nn.Linear(2, 2, key=jax.random.key(0))}
    with pytest.raises(SelectionError, match="no adapter that could be drawn"):
        plot_adapters(model)
    with pytest.raises(SelectionError, match=r"(?s)cannot be merged:\n  - head"):
        plot_adapters(Net(model).lora(1, wrapper=Unmergeable).module)
