"""`plot_adapters` and `Comparison.plot`."""

import dataclasses
import math
import sys

import equinox as eqx
import jax
import pytest

from jno.lora import (
    AdapterEffects,
    Comparison,
    ComparisonRow,
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


def test_a_picture_shows_itself_in_a_notebook_and_pyplot_does_not_keep_it(trained):
    figure = plot_adapters(adapter_effects(trained))
    assert figure._repr_png_().startswith(b"\x89PNG\r\n")
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


@pytest.mark.parametrize(("size", "scale"), [(1.0, "log"), (1e-3, "log"), (0.0, "linear")])
def test_singular_values_are_on_a_logarithmic_axis_unless_all_are_zero(trained, size, scale):
    row = adapter_effects(trained).rows[0]
    row = dataclasses.replace(row, singular_values=(size, size / 2))
    assert plot_adapters(AdapterEffects((row,))).axes[2].get_yscale() == scale


@pytest.mark.parametrize("number", [math.inf, math.nan])
def test_what_is_not_finite_has_no_bar(trained, number):
    row, *others = adapter_effects(trained).rows
    values = (number, *row.singular_values[1:])
    bad = dataclasses.replace(row, relative_norm=number, singular_values=values)
    figure = plot_adapters(AdapterEffects((bad, *others)))
    assert math.isnan(figure.axes[0].patches[0].get_width())
    assert len(figure.axes[2].lines[0].get_ydata()) == 1
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_hundreds_of_matrices_still_fit(trained):
    row = adapter_effects(trained).rows[0]
    figure = plot_adapters(AdapterEffects((row,) * 500))
    assert figure.get_figheight() <= 14
    assert len(figure.axes[0].get_yticks()) <= 60


def test_without_adapters_there_is_nothing_to_draw():
    class Unmergeable(LoRALinear):
        def merge(self):
            raise WrapperError("cannot be merged")

    model = {"head": eqx.nn.Linear(2, 2, key=jax.random.key(0))}
    with pytest.raises(SelectionError, match="no adapter that could be drawn"):
        plot_adapters(model)
    with pytest.raises(SelectionError, match=r"(?s)cannot be merged:\n  - head"):
        plot_adapters(Net(model).lora(1, wrapper=Unmergeable).module)


ROWS = (
    ComparisonRow("lora", 10, 0.5, 0.5, losses=(1.0, 0.5)),
    ComparisonRow("full", 1000, 0.2, 0.2, losses=(1.0, 0.2)),
    ComparisonRow("nobody", error="SelectionError: no such adapter"),
    ComparisonRow("none", 0, 1.0, 1.0, losses=(1.0, 1.0)),
)


def test_a_comparison_has_a_line_for_each_candidate_that_was_trained(tmp_path):
    figure = Comparison(ROWS, steps=2).plot(tmp_path / "way.png")
    way, reached = figure.axes
    assert [tuple(line.get_ydata()) for line in way.lines] == [(1, 0.5), (1, 0.2), (1, 1)]
    assert [tuple(c.get_offsets()[0]) for c in reached.collections] == [(10, 0.5), (1000, 0.2)]
    assert [tuple(line.get_ydata()) for line in reached.lines] == [(1, 1)]
    assert (way.get_yscale(), reached.get_xscale()) == ("log", "log")
    # Names for the strokes between would lie on each other.
    assert [label.get_text() for label in reached.get_xticklabels() if label.get_text()]
    assert not any(label.get_text() for label in reached.get_xticklabels(minor=True))
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["lora", "full", "none"]
    assert (tmp_path / "way.png").stat().st_size > 0


def test_losses_below_zero_are_drawn_on_a_plain_axis():
    row = ComparisonRow("lora", 10, -0.5, -0.5, losses=(1.0, -0.5))
    way, reached = Comparison((row,), steps=2).plot().axes
    assert (way.get_yscale(), reached.get_yscale()) == ("linear", "linear")


def test_a_comparison_in_which_all_failed_is_not_drawn():
    with pytest.raises(SelectionError, match=r"(?s)No candidate was trained.*nobody: "):
        Comparison(ROWS[2:3], steps=2).plot()
