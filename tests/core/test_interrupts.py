"""Ctrl-C at any moment leaves a net as it was: the model, what trains, the mask, and the names.

A signal is handled where Python calls a function, so the tests interrupt a call of one of our
functions, at each of many in turn. For `compare` see the tests of jno-lora-compare.
"""

import dataclasses
import inspect
import sys
from pathlib import Path

import equinox as eqx
import jax
import pytest

import jno.lora
from jno.lora import Net, Registry, apply_lora, extract_adapters, save_adapters

from .toys import ToyScale

# The adapters here come from no plugin, and none is looked for.
pytestmark = pytest.mark.usefixtures("registry")

SOURCES = str(Path(jno.lora.__file__).parent)
# How many moments of a control are tried. The last calls are all among them: there it acts.
EARLY, LAST = 4, 8


class Interrupt:
    """Counts the calls of our functions, and interrupts the call of that number."""

    def __init__(self, at=None):
        self.at, self.calls = at, 0

    def __call__(self, frame, event, arg):
        # A generator that goes on may be one that is thrown away, where nothing can be raised.
        goes_on = frame.f_code.co_flags & inspect.CO_GENERATOR and frame.f_lasti > 0
        is_ours = frame.f_code.co_filename.startswith(SOURCES)
        if event == "call" and is_ours and not goes_on:
            self.calls += 1
            if self.calls == self.at:
                raise KeyboardInterrupt

    def during(self, action):
        before = sys.gettrace()
        sys.settrace(self)
        try:
            action()
        finally:
            sys.settrace(before)


def moments(action):
    """The numbers of the calls to interrupt: some at the start, and all at the end."""
    counter = Interrupt()
    counter.during(action)
    early = range(1, max(1, counter.calls - LAST))
    last = range(max(1, counter.calls - LAST), counter.calls + 1)
    return [*early[:: max(1, len(early) // EARLY)], *last]


def are_same(state, other):
    """Whether the fields of two states of a net are the same objects.

    A control may partition the net first, which is remembered for a warning.
    """
    names = {field.name for field in dataclasses.fields(state)} - {"handout"}
    return all(getattr(state, name) is getattr(other, name) for name in names)


KEYS = jax.random.split(jax.random.key(0), 3)
LAYERS = {name: eqx.nn.Linear(2, 2, key=k) for name, k in zip("abc", KEYS, strict=True)}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "file.safetensors"
    adapted = apply_lora(LAYERS, 1, key=KEYS[0], wrapper=ToyScale, target="b|c")
    save_adapters(adapted, path, registry=Registry(discover=False))
    return path


def net_with(*names):
    """A net with adapters of these names, of which the last is active."""
    net = Net(LAYERS)
    for name in names:
        if net.active is not None:
            net.deactivate()
        net.lora(1, wrapper=ToyScale, target="a|b").add_adapter(name)
    return net


def summary_of_base(net):
    with net.disabled():
        net.summary()


# For each control: how the net is made, and what is interrupted.
CONTROLS = {
    "disabled": (lambda: net_with("one").mask("c"), lambda net, _: summary_of_base(net)),
    "lora": (lambda: net_with().mask("c"), lambda net, _: net.lora(1, wrapper=ToyScale)),
    "freeze": (lambda: net_with("one").mask("c"), lambda net, _: net.freeze()),
    "update": (net_with, lambda net, _: net.update(net.partition()[0])),
    "merge": (lambda: net_with("one"), lambda net, _: net.merge()),
    "add_adapter": (
        lambda: net_with("one"),
        lambda net, _: net.add_adapter("two", extract_adapters(net.module)),
    ),
    "activate": (lambda: net_with("one", "two"), lambda net, _: net.activate("one")),
    "delete_adapter": (lambda: net_with("one", "two"), lambda net, _: net.delete_adapter("two")),
    "load_adapters": (
        lambda: net_with("one").deactivate().lora(1, wrapper=ToyScale, target="a|b"),
        lambda net, file: net.load_adapters(file, wrappers=[ToyScale]),
    ),
}


@pytest.mark.parametrize("name", CONTROLS)
def test_a_control_that_is_interrupted_has_changed_nothing(name, file):
    make, control = CONTROLS[name]
    control(make(), file)  # compiles
    first = make()
    for moment in moments(lambda: control(first, file)):
        net = make()
        before = net._state
        with pytest.raises(KeyboardInterrupt):
            Interrupt(moment).during(lambda net=net: control(net, file))
        assert are_same(net._state, before), f"call {moment}"


def test_wherever_a_listing_is_interrupted_the_next_one_is_whole(site):
    site.install_zoo()
    site.plugin("acme-lora", '"Acme"')
    site.plugin("bolt-lora", '"Bolt"')
    Registry().records()  # imports the modules
    for moment in moments(Registry().records):
        registry = Registry()
        with pytest.raises(KeyboardInterrupt):
            Interrupt(moment).during(registry.records)
        found = {record.distribution: record.status for record in registry.records()}
        assert found == dict.fromkeys(["jno-lora-zoo", "acme-lora", "bolt-lora"], "loaded")
        assert len(registry.resolve("Acme")) == 1, f"call {moment}"
