"""Long work shows how far it is, short work and work that is traced show nothing."""

import io
import logging
import re
import sys
import time

import equinox as eqx
import jax
import pytest
from rich.console import Console

from jno.lora import WrapperError, apply_lora
from jno.lora._showing.progress import tracked

from .toys import ToyLinear, ToyScale


def terminal():
    return Console(file=io.StringIO(), force_terminal=True, width=80)


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr("jno.lora._showing.progress._PATIENCE", 0.02)


class Loader:
    """Batches of a loader, whose length only some datasets know."""

    def __init__(self, length):
        self.length = length

    def __len__(self):
        if self.length is None:
            raise TypeError("this dataset has no length")
        return self.length

    def __iter__(self):
        yield from range(1000)


@pytest.mark.parametrize(
    ("items", "console", "show", "shown"),
    [
        (Loader(1000), terminal(), True, True),
        (Loader(None), terminal(), True, False),
        (range(1000), Console(file=io.StringIO()), True, False),  # no terminal
        (range(1000), terminal(), False, False),
        (range(2), terminal(), True, False),  # short
    ],
)
def test_long_work_shows_a_bar_in_a_terminal_and_takes_it_away(
    items, console, show, shown, impatient
):
    for index, number in enumerate(tracked(items, "Counting", console=console, show=show)):
        time.sleep(0.005)
        assert number == index
        if number == 20:
            break
    written = console.file.getvalue()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written)
    assert ("Counting" in text and "/1000" in text) is shown is bool(written)
    assert written.endswith("\x1b[2K") is shown  # the line is cleared


def test_the_end_of_long_work_is_logged(caplog, monkeypatch, impatient):
    monkeypatch.setattr("jno.lora._showing.progress._BETWEEN_LINES", 0.02)
    with caplog.at_level(logging.INFO, "jno.lora"):
        for _ in tracked(range(10), "Counting"):
            time.sleep(0.01)
    *lines, last = [record.message for record in caplog.records]
    assert all(re.fullmatch(r"Counting: \d of 10", line) for line in lines)
    assert lines and re.fullmatch(r"Counting: 10 in \d\.\d s", last)


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Slow(ToyLinear):
    """Takes a while for each layer, until it has had enough."""

    def __init__(self, base, rank, alpha, *, key):
        if float(base.weight[0, 0]) == 5:  # needs the value, and so is never compiled
            raise ValueError("enough")
        time.sleep(0.02)
        ToyLinear.__init__(self, base, rank, alpha, key=key)


def test_adapters_that_take_long_to_build_show_a_bar_on_standard_error(
    getkey, monkeypatch, impatient
):
    layers = [eqx.nn.Linear(2, 2, key=getkey())] * 8
    layers[5] = eqx.tree_at(lambda m: m.weight, layers[5], layers[5].weight.at[0, 0].set(5))
    monkeypatch.setattr(sys, "stderr", Terminal())
    with pytest.raises(WrapperError, match=r"'5'.*enough"):
        apply_lora(layers, 1, key=getkey(), wrapper=Slow)
    written = sys.stderr.getvalue()
    assert "Adapting layers" in written and written.endswith("\x1b[2K")  # gone before the error
    # Traced work shows nothing.
    monkeypatch.setattr(sys, "stderr", Terminal())
    adapt = lambda key: eqx.filter(apply_lora(layers, 1, key=key, wrapper=Traced), eqx.is_array)  # noqa: E731
    jax.eval_shape(adapt, getkey())
    assert sys.stderr.getvalue() == ""


class Traced(ToyScale):
    def __init__(self, base, rank, alpha, *, key):
        time.sleep(0.01)
        ToyScale.__init__(self, base, rank, alpha, key=key)
