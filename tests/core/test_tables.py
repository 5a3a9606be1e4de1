"""Plans and reports as text, in a terminal, and as HTML in a notebook."""

import builtins
import io
import xml.etree.ElementTree as ElementTree

import equinox as eqx
import pytest
from rich.console import Console

from jno.lora import Plan, PlanRow, apply_lora, lora_report, plan_lora
from jno.lora._showing._tables import table

from .toys import ToyLinear, shaken


@pytest.fixture
def deep(getkey):
    """Twelve layers of two linear maps, the last one wider, and a head."""
    sizes = [2] * 11 + [3]
    layers = [{"up": eqx.nn.Linear(2, size, key=getkey())} for size in sizes]
    return {"layers": layers, "head": eqx.nn.Linear(2, 1, key=getkey())}


def lines_with(text, *parts):
    return [line.split() for line in text.splitlines() if all(part in line for part in parts)]


def test_a_plan_groups_what_is_repeated_and_keeps_the_rows(deep):
    plan = plan_lora(deep, 1, target="layers/.*/up", wrapper=ToyLinear)
    assert len(plan.rows) == 13
    (line,) = lines_with(str(plan), "/up")
    assert line[:4] == ["layers/[0-11]/up", "x", "12", "Linear"]
    assert "x 1 " not in str(plan)


def test_a_report_groups_only_what_has_the_same_numbers(deep, getkey):
    report = lora_report(apply_lora(deep, 1, key=getkey(), wrapper=ToyLinear))
    wide, narrow = lines_with(str(report), "/up")
    assert wide[:3] == ["layers/[0-10]/up", "x", "11"] and wide[-2:] == ["4", "10"]
    assert narrow[0] == "layers/11/up" and narrow[-2:] == ["5", "14"]
    assert len(report.rows) == 13


def test_rows_with_different_measurements_are_not_grouped(getkey):
    layers = [eqx.nn.Linear(2, 2, key=getkey()) for _ in range(2)]
    adapted = shaken(apply_lora(layers, 1, key=getkey(), wrapper=ToyLinear))
    one, other = lora_report(adapted, merge_error=True)
    assert one.merge_error != other.merge_error
    assert len(lines_with(str(lora_report(adapted, merge_error=True)), "ToyLinear")) == 2


def test_a_table_without_repetitions_has_no_column_for_them(model, getkey):
    adapted = apply_lora(model, 1, key=getkey(), target="head", wrapper=ToyLinear)
    assert lines_with(str(lora_report(adapted)), "path")[0][:2] == ["path", "layer"]


def test_the_repr_is_one_line(deep, getkey):
    plan = plan_lora(deep, 1, wrapper=ToyLinear)
    assert repr(plan) == "Plan(13 of 13 candidate layers would be wrapped)"
    report = lora_report(apply_lora(deep, 1, key=getkey(), wrapper=ToyLinear))
    assert repr(report).startswith("LoraReport(13 adapted layers, 52 of ")


def test_a_notebook_gets_a_table_of_its_own(deep):
    root = ElementTree.fromstring(plan_lora(deep, 1, wrapper=ToyLinear)._repr_html_())
    heads = [cell.text for cell in root.iter("th")]
    assert heads == ["path", None, "layer", "plan", "from", "rank", "alpha"]
    rows = [[cell.text for cell in row] for row in root.iter("tr")][1:]
    assert rows[0][:3] == ["head", None, "Linear"]
    assert rows[1][:3] == ["layers/[0-11]/up", "x 12", "Linear"]
    assert root.find("div").find("b").text == "13 of 13 candidate layers would be wrapped"


def test_html_has_no_colours_and_needs_nothing_else(deep):
    text = plan_lora(deep, 1, wrapper=ToyLinear)._repr_html_()
    for part in ("#", "rgb", "background", "<script", "<link", "<style", "class=", "http"):
        assert part not in text, part


def test_names_of_a_model_are_neither_html_nor_markup():
    plan = Plan((PlanRow("<b>&[red]/[/red]", 'A"<i>', "no wrapper applies"),))
    root = ElementTree.fromstring(plan._repr_html_())
    assert [cell.text for cell in root.iter("td")][:2] == ["<b>&[red]/[/red]", 'A"<i>']
    assert "<b>&[red]/[/red]" in str(plan)
    out = io.StringIO()
    Console(file=out, width=120).print(plan)
    assert "<b>&[red]/[/red]" in out.getvalue()


def test_a_caption_is_below_in_every_form():
    made = table("title", [("a", "left")], [("wide enough",)], caption="one & two")
    assert str(made).splitlines()[0] == "title" and str(made).splitlines()[-1] == "one & two"
    root = ElementTree.fromstring(made._repr_html_())
    assert root.findall("div")[1].text == "one & two"


def test_in_a_notebook_text_is_text_too(monkeypatch):
    class ZMQInteractiveShell:
        config = None

    # By this name rich knows a notebook, in which it shows instead of writing.
    monkeypatch.setattr(builtins, "get_ipython", ZMQInteractiveShell, raising=False)
    assert "a title" in str(table("a title", [("column", "left")], [["cell"]]))


def test_text_is_never_folded():
    long = "/".join(f"block{n}" for n in range(100))
    columns = [("path", "left"), ("layer", "left")]
    assert long in str(table("title", columns, [[long, "Linear"]]))
    assert long in str(table(long, columns, [["a", "b"]]))
    assert long in str(table("title", columns, [["a", "b"]], caption=long))
