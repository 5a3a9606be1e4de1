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
    assert repr(plan) == "Plan(12 of 13 candidate layers would be wrapped)"
    # A notebook gets a table of its own.
    root = ElementTree.fromstring(plan._repr_html_())
    heads = [cell.text for cell in root.iter("th")]
    assert heads == ["path", None, "layer", "plan", "from", "rank", "alpha"]
    rows = [[cell.text for cell in row] for row in root.iter("tr")][1:]
    assert rows[0][:3] == ["head", None, "Linear"]
    assert rows[1][:3] == ["layers/[0-11]/up", "x 12", "Linear"]
    assert root.find("div").find("b").text == "12 of 13 candidate layers would be wrapped"


def test_a_report_groups_only_what_has_the_same_numbers(deep, getkey):
    adapted = apply_lora(deep, 1, key=getkey(), wrapper=ToyLinear)
    report = lora_report(adapted)
    wide, narrow = lines_with(str(report), "/up")
    assert wide[:3] == ["layers/[0-10]/up", "x", "11"] and wide[-2:] == ["4", "10"]
    assert narrow[0] == "layers/11/up" and narrow[-2:] == ["5", "14"]
    assert repr(report).startswith("LoraReport(13 adapted layers, 52 of ")
    # A table without repetitions has no column for them, and other measurements are other rows.
    text = str(lora_report(shaken(adapted["layers"][:2]), merge_error=True))
    assert lines_with(text, "path")[0][:2] == ["path", "layer"]
    assert len(lines_with(text, "ToyLinear")) == 2


def test_names_of_a_model_are_no_html_markup_or_control_and_in_a_notebook_text_too(monkeypatch):
    plan = Plan((PlanRow("<b>&[red]/[/red]", 'A"<i>', "no wrapper applies"),))
    root = ElementTree.fromstring(plan._repr_html_())
    assert [cell.text for cell in root.iter("td")][:2] == ["<b>&[red]/[/red]", 'A"<i>']
    out = io.StringIO()
    Console(file=out, width=120).print(plan)
    # By the name of this class rich knows a notebook, in which it shows instead of writing.
    shell = type("ZMQInteractiveShell", (), {"config": None})
    monkeypatch.setattr(builtins, "get_ipython", shell, raising=False)
    assert "<b>&[red]/[/red]" in str(plan) and "<b>&[red]/[/red]" in out.getvalue()
    assert table("\x1b[2K", [], []).title == r"\x1b[2K"


def test_text_is_never_folded_and_a_caption_is_below():
    long = "/".join(f"block{n}" for n in range(100))
    columns = [("path", "left"), ("layer", "left")]
    made = table(long, columns, [[long, "Linear"]], caption=f"& {long}")
    title, *lines, caption = str(made).splitlines()
    assert title == long and caption == f"& {long}" and any(long in line for line in lines)
    root = ElementTree.fromstring(made._repr_html_())
    assert root.findall("div")[1].text == f"& {long}"
