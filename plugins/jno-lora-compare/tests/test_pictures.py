"""`Comparison.plot`."""

import dataclasses

import pytest

from jno.lora import SelectionError
from jno_lora_compare import Comparison, ComparisonRow

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


def test_many_candidates_are_named_points_coloured_by_time(tmp_path):
    timed = [dataclasses.replace(row, milliseconds=3.0 + n) for n, row in enumerate(ROWS)]
    figure = Comparison(tuple(timed), steps=2).plot(tmp_path / "times.svg", times=True)
    axes, bar = figure.axes
    (points,) = axes.collections
    assert points.get_offsets().tolist() == [[10, 0.5], [1000, 0.2], [0, 1.0]]
    assert points.get_array().tolist() == [3.0, 4.0, 6.0]
    assert [text.get_text() for text in axes.texts] == ["lora", "full", "none"]
    assert (axes.get_ylabel(), axes.get_yscale()) == ("final loss", "log")
    assert bar.get_ylabel() == "milliseconds per step"
    twice = Comparison((timed[0], dataclasses.replace(timed[0], name="same")), steps=2)
    assert [text.get_text() for text in twice.plot(times=True).axes[0].texts] == ["lora, same"]


def test_scores_are_drawn_where_a_score_was_given():
    scores = {"lora": -0.5, "full": -0.25, "none": -2.0}
    rows = tuple(dataclasses.replace(row, score=scores.get(row.name)) for row in ROWS)
    way, reached = Comparison(rows, steps=2).plot().axes
    assert [tuple(c.get_offsets()[0]) for c in reached.collections] == [(10, -0.5), (1000, -0.25)]
    assert [tuple(line.get_ydata()) for line in reached.lines] == [(-2, -2)]
    assert (reached.get_ylabel(), reached.get_yscale()) == ("score", "linear")
    assert (way.get_ylabel(), way.get_yscale()) == ("training loss", "log")
    below_zero = ComparisonRow("lora", 10, -0.5, -0.5, losses=(1.0, -0.5))
    way, reached = Comparison((below_zero,), steps=2).plot().axes
    assert (way.get_yscale(), reached.get_yscale()) == ("linear", "linear")


def test_a_comparison_in_which_all_failed_is_not_drawn():
    with pytest.raises(SelectionError, match=r"(?s)No candidate was trained.*nobody: "):
        Comparison(ROWS[2:3], steps=2).plot()
