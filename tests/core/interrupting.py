"""Ctrl-C at a chosen moment, and what there is to know of a net before and after it.

A signal is handled where Python calls a function, so that is where the tests interrupt: at a call
of one of our functions, at each of many in turn.
"""

import inspect
import sys
from pathlib import Path

import jax.tree_util as jtu

import jno.lora

SOURCES = str(Path(jno.lora.__file__).parent)
# How many moments of a control are tried. The last calls are all among them: there it acts.
MOMENTS, LAST = 12, 8


class Interrupt:
    """Counts the calls of our functions, and interrupts the one of that number."""

    sources = (SOURCES,)

    def __init__(self, at=None):
        self.at, self.names = at, []

    @property
    def calls(self):
        return len(self.names)

    def __call__(self, frame, event, arg):
        # A generator that goes on may be one that is thrown away, where nothing can be raised.
        goes_on = frame.f_code.co_flags & inspect.CO_GENERATOR and frame.f_lasti > 0
        is_ours = frame.f_code.co_filename.startswith(self.sources)
        if event == "call" and is_ours and not goes_on:
            self.names.append(frame.f_code.co_name)
            if self.calls == self.at:
                raise KeyboardInterrupt
        # No line is traced: only calls.

    def during(self, action):
        before = sys.gettrace()
        sys.settrace(self)
        try:
            action()
        finally:
            sys.settrace(before)


def moments(calls):
    """The numbers of the calls to interrupt: some at the start, and all at the end."""
    early = range(1, max(1, calls - LAST) + 1)
    return sorted({*early[:: max(1, len(early) // (MOMENTS - LAST))], *range(1, calls + 1)[-LAST:]})


def state_of(net):
    """All that there is to know about a net, as objects that are the same or not."""
    kept = {name: tuple(map(id, jtu.tree_leaves(net.adapter(name)))) for name in net.adapters}
    originals = {path: id(layer) for path, (layer, _) in net._state.originals.items()}
    return (
        tuple(map(id, jtu.tree_leaves(net.module))),
        jtu.tree_structure(net.module),
        tuple(jtu.tree_leaves(net.trainable)),
        (net._state.mask, net.adapters, net.active, net._state.enabled is None),
        kept,
        originals,
    )
