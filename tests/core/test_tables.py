"""Plans and reports as text, in a terminal, and as HTML in a notebook; the rows of reports."""

import builtins
import io
import itertools
import re
import xml.etree.ElementTree as ElementTree

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, strategies as st
from rich.console import Console

from jno.lora import Net, Plan, PlanRow, apply_lora, lora_report, merge_lora, plan_lora
from jno.lora._showing.grouping import grouped
from jno.lora._showing.tables import table

from .toys import ToyLinear, ToyScale, ToyStacked, UserEmbedding, shaken


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


def test_paths_are_never_folded_sentences_are_and_a_caption_is_below():
    long = "/".join(f"block{n}" for n in range(100))
    columns = [("path", "left"), ("plan", "left")]
    made = table(long, columns, [[long, "no adapter applies " * 10]], caption=f"& {long}")
    title, *lines, caption = str(made).splitlines()
    assert title == long and caption == f"& {long}" and any(long in line for line in lines)
    assert max(map(len, lines)) < len(long) + 70
    assert "\n".join(lines).count("no adapter applies") > 5
    root = ElementTree.fromstring(made._repr_html_())
    assert root.findall("div")[1].text == f"& {long}"


# --- the rows of a report

PLAIN = 5 * 3 + 2 * (9 + 3) + (6 + 2) + 1  # embedding, two layers, head, temperature


def test_each_adapter_has_a_row_and_the_totals_are_those_of_the_whole_model(model, getkey):
    wrappers = [ToyLinear, UserEmbedding]
    adapted = apply_lora(model, 2, 8.0, key=getkey(), target="head|emb", wrapper=wrappers)
    report = lora_report(adapted)
    embedding, head = report
    assert (embedding.path, embedding.layer) == ("embedding", "Embedding")
    assert (embedding.wrapper, head.wrapper) == (UserEmbedding, ToyLinear)
    assert (head.path, head.layer) == ("head", "Linear")
    assert (head.rank, head.alpha, head.distribution) == (2, 8.0, None)
    assert (head.trainable, head.total) == (2 * 3 + 2 * 2, 10 + 2 * 3 + 2)
    assert (report.trainable, report.total) == (10 + 15, PLAIN + 10 + 15)
    assert report.percentage == 100 * 25 / (PLAIN + 25)
    # A template of shapes counts like the model.
    assert lora_report(eqx.filter_eval_shape(lambda: adapted)) == report
    assert lora_report(merge_lora(adapted)) == lora_report(model)
    assert len(lora_report(model)) == 0


def test_only_parameters_are_counted_and_no_constants_of_an_adapter(getkey):
    (row,) = lora_report(ToyScale(eqx.nn.Linear(3, 2, key=getkey()), 1, 1.0, key=getkey()))
    assert (row.trainable, row.total) == (2, 2 + 8)
    (row,) = lora_report(ToyLinear(eqx.nn.Linear(3, 1, key=getkey()), 8, 1.0, key=getkey()))
    assert (row.path, row.rank) == ("", 1)  # the effective rank
    report = lora_report({"x": jnp.ones(2), "n": jnp.arange(5), "f": jax.nn.relu, "s": "text"})
    assert (len(report), report.trainable, report.total) == (0, 0, 2)
    assert (lora_report([]).total, lora_report([]).percentage) == (0, 0.0)
    model = {"w": jnp.ones((3, 2), jnp.complex64), "l": eqx.nn.Linear(2, 2, key=getkey())}
    report = Net(model).lora(1, wrapper=ToyLinear).summary()
    assert (report.trainable, report.total) == (12 + 4, 12 + 6 + 4)  # a complex number is two
    stack = eqx.filter_vmap(lambda key: eqx.nn.Linear(3, 3, key=key))(jax.random.split(getkey(), 4))
    (row,) = lora_report(apply_lora(stack, 2, key=getkey(), wrapper=ToyStacked))
    assert (row.trainable, row.total) == (4 * (2 * 3 + 3 * 2), 4 * (2 * 3 + 3 * 2 + 9 + 3))


# --- paths that differ in nothing but their indices are one row


def labels(*paths):
    return [(path, count) for path, count, _ in grouped((path, "") for path in paths)]


def meant_by(label):
    """Every path that a label stands for."""
    choices = []
    for part in label.split("/"):
        if not part.startswith("["):
            choices.append([part])
            continue
        ranges = (re.fullmatch(r"(\d+)(?:-(\d+))?", r) for r in part[1:-1].split(","))
        choices.append([str(i) for r in ranges for i in range(int(r[1]), int(r[2] or r[1]) + 1)])
    return ["/".join(path) for path in itertools.product(*choices)]


NAMES = ["", "a/b", "layer1", "layer2", "007", "008", "-1", "x/¹", "x/²"]
GROUPS = [
    (["3", "11", "4", "0"], [("[0,3-4,11]", 4)]),
    # Stages of different depths.
    (
        [f"stages/{i}/{j}" for i, depth in enumerate((3, 3, 9)) for j in range(depth)],
        [("stages/[0-1]/[0-2]", 6), ("stages/2/[0-8]", 9)],
    ),
    (["a/0", "a/0", "a/1"], [("a/[0-1]", 3)]),  # the keys 0 and "0" of a dict have one path
    (["b/1/q", "b/1/k", "a/0", "b/0/q"], [("b/[0-1]/q", 2), ("b/1/k", 1), ("a/0", 1)]),
    (NAMES, [(name, 1) for name in NAMES]),
]


@pytest.mark.parametrize(("paths", "groups"), GROUPS)
def test_paths_that_differ_in_indices_are_one_row(paths, groups):
    assert labels(*paths) == groups


def test_rows_are_grouped_only_if_they_agree():
    rows = [("0/q", "rank 4"), ("1/q", "rank 8"), ("2/q", "rank 4"), ("0/k", "rank 4")]
    assert grouped(rows) == [("[0,2]/q", 2, "rank 4"), ("1/q", 1, "rank 8"), ("0/k", 1, "rank 4")]


PATHS = st.lists(
    st.lists(st.sampled_from(["a", "b", "0", "1", "2", "5", "10"]), max_size=4).map("/".join),
    unique=True,
)


@given(PATHS)
def test_the_labels_stand_for_the_paths_and_no_others(paths):
    found = labels(*paths)
    assert sorted(itertools.chain(*(meant_by(label) for label, _ in found))) == sorted(paths)
    assert all(len(meant_by(label)) == count for label, count in found)
