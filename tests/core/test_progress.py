"""Long work shows how far it is, short work and work that is traced show nothing."""

import contextlib
import io
import logging
import os
import re
import sys
import time

import equinox as eqx
import jax
import pytest
from rich.console import Console

from jno.lora import WrapperError, apply_lora
from jno.lora._showing._progress import tracked

from .toys import ToyLinear, ToyScale


def terminal():
    return Console(file=io.StringIO(), force_terminal=True, width=80)


def shown(console):
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())


def test_it_hands_on_the_items_in_order():
    assert list(tracked([3, 1, 2], "Counting")) == [3, 1, 2]
    assert list(tracked([], "Counting")) == []


class Loader:
    """Batches of a loader, whose length only some datasets know."""

    def __init__(self, length):
        self.length = length

    def __len__(self):
        if self.length is None:
            raise TypeError("this dataset has no length")
        return self.length

    def __iter__(self):
        for number in range(1000):
            time.sleep(0.01)
            yield number


@pytest.mark.parametrize(("length", "is_shown"), [(1000, True), (None, False)])
def test_a_loader_shows_a_bar_if_it_knows_its_length(length, is_shown):
    console = terminal()
    for number in tracked(Loader(length), "Loading", console=console):
        if number == 20:
            break
    assert ("/1000" in shown(console)) == is_shown


def test_work_that_is_long_shows_a_bar_and_takes_it_away():
    console = terminal()
    for number in tracked(range(1000), "Counting", console=console):
        time.sleep(0.01)  # ten seconds in all
        if number == 20:
            break
    assert "Counting" in shown(console) and "/1000" in shown(console)
    assert console.file.getvalue().endswith("\x1b[2K")  # the line is cleared


@pytest.mark.parametrize(
    ("number", "console", "show"),
    [
        (20, terminal(), True),  # done at once
        (1000, Console(file=io.StringIO()), True),  # no terminal
        (1000, terminal(), False),
    ],
)
def test_otherwise_nothing_is_written(number, console, show):
    for index in tracked(range(number), "Counting", console=console, show=show):
        time.sleep(0.002)
        if index == 10:
            break
    assert console.file.getvalue() == ""


def test_the_first_item_does_not_count_for_the_remaining_time():
    console = terminal()
    for index in tracked(range(50), "Counting", console=console):
        time.sleep(0.1 if index == 0 else 0)
    assert console.file.getvalue() == ""


def test_the_end_of_long_work_is_logged(caplog, monkeypatch):
    monkeypatch.setattr("jno.lora._showing._progress._PATIENCE", 0.01)
    monkeypatch.setattr("jno.lora._showing._progress._BETWEEN_LINES", 0.02)
    with caplog.at_level(logging.INFO, "jno.lora"):
        for _ in tracked(range(10), "Counting"):
            time.sleep(0.01)
    *lines, last = [record.message for record in caplog.records]
    assert all(re.fullmatch(r"Counting: \d of 10, about \d+ s left", line) for line in lines)
    assert lines and re.fullmatch(r"Counting: 10 in \d\.\d s", last)


def all_of(terminal):
    """All text written to a terminal whose other end is closed. One read may give only a part."""
    written = b""
    with contextlib.suppress(OSError):  # which is how Linux says that there is no more
        while part := os.read(terminal, 10_000):
            written += part
    os.close(terminal)
    return written


class Slow(ToyLinear):
    """Takes a while for each layer, until it has had enough."""

    def __init__(self, base, rank, alpha, *, key):
        if float(base.weight[0, 0]) == 5:  # needs the value, and so is never compiled
            raise ValueError("enough")
        time.sleep(0.05)
        ToyLinear.__init__(self, base, rank, alpha, key=key)


def test_adapters_that_take_long_to_build_show_a_bar_on_standard_error(getkey, monkeypatch):
    layers = [eqx.nn.Linear(2, 2, key=getkey())] * 100
    layers[5] = eqx.tree_at(lambda m: m.weight, layers[5], layers[5].weight.at[0, 0].set(5))
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "w") as stderr, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stderr)
        with pytest.raises(WrapperError, match=r"'5'.*enough"):
            apply_lora(layers, 1, key=getkey(), wrappers=Slow)
    written = all_of(ours).decode()
    assert "Adapting layers" in written and written.endswith("\x1b[2K")  # gone before the error


def test_traced_work_shows_nothing(getkey, monkeypatch):
    class Traced(ToyScale):
        def __init__(self, base, rank, alpha, *, key):
            time.sleep(0.005)
            ToyScale.__init__(self, base, rank, alpha, key=key)

    layers = [eqx.nn.Linear(2, 2, key=getkey())] * 6
    monkeypatch.setattr("jno.lora._showing._progress._PATIENCE", 0.0)
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "w") as stderr, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stderr)
        jax.eval_shape(
            lambda key: eqx.filter(apply_lora(layers, 1, key=key, wrappers=Traced), eqx.is_array),
            getkey(),
        )
        stderr.write("end")
    assert all_of(ours) == b"end"
