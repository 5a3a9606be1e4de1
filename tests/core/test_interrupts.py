"""Ctrl-C at any moment leaves a net as it was: the model, what trains, the mask, and the names.

A signal is handled where Python calls a function, so that is where the tests interrupt: at a call
of one of our functions, at each of many in turn.
"""

import inspect
import sys
import types
from pathlib import Path

import equinox as eqx
import jax
import jax.tree_util as jtu
import pytest

import jno.lora
from jno.lora import Net, Registry, apply_lora, extract_adapters, save_adapters

from .toys import ToyScale

SOURCES = str(Path(jno.lora.__file__).parent)
# How many moments of a control are tried. The last calls are all among them: there it acts.
MOMENTS, LAST = 20, 12


# The adapters here come from no plugin, and none is looked for.
pytestmark = pytest.mark.usefixtures("registry")


class Interrupt:
    """Counts the calls of our functions, and interrupts the one of that number."""

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
        # No line is traced: only calls.

    def during(self, action):
        before = sys.gettrace()
        sys.settrace(self)
        try:
            action()
        finally:
            sys.settrace(before)


class Rebuilding(ToyScale):
    """Keeps its layer in another form, as PiSSA does."""

    def __init__(self, base, rank, alpha, *, key):
        ToyScale.__init__(self, base, rank, alpha, key=key)
        self.base = eqx.tree_at(lambda layer: layer.weight, base, base.weight / 2)

    def unwrap(self):
        return eqx.tree_at(lambda layer: layer.weight, self.base, self.base.weight * 2)


KEYS = jax.random.split(jax.random.key(0), 3)
LAYERS = {name: eqx.nn.Linear(2, 2, key=k) for name, k in zip("abc", KEYS, strict=True)}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "file.safetensors"
    adapted = apply_lora(LAYERS, 1, key=KEYS[0], wrappers=ToyScale, target="b|c")
    save_adapters(adapted, path, registry=Registry(discover=False))
    return path


def net_with(*names):
    """A net with adapters of these names, of which the last is active."""
    net = Net(LAYERS)
    for name in names:
        if net.active is not None:
            net.deactivate()
        net.lora(1, wrapper=Rebuilding, target="a|b").add_adapter(name)
    return net


def state_of(net):
    """All that there is to know about a net, as objects that are the same or not."""
    kept = {name: tuple(map(id, jtu.tree_leaves(net.adapter(name)))) for name in net.adapters}
    originals = {path: id(original.layer) for path, original in net._now.originals.items()}
    return (
        tuple(map(id, jtu.tree_leaves(net.module))),
        jtu.tree_structure(net.module),
        tuple(jtu.tree_leaves(net.trainable)),
        (net._mask, net.adapters, net.active, net._disabled is None),
        kept,
        originals,
    )


# name: (how the net is made, what is interrupted)
CONTROLS = {
    "lora": (lambda: net_with().mask("c"), lambda net, _: net.lora(1, wrapper=Rebuilding)),
    "plan": (lambda: net_with().mask("c"), lambda net, _: net.plan(1, wrapper=Rebuilding)),
    "freeze": (lambda: net_with("one").mask("c"), lambda net, _: net.freeze()),
    "unfreeze": (lambda: net_with("one").freeze(), lambda net, _: net.unfreeze()),
    "update": (net_with, lambda net, _: net.update(net.partition()[0])),
    "merge": (lambda: net_with("one"), lambda net, _: net.merge()),
    "unwrap": (lambda: net_with("one"), lambda net, _: net.unwrap()),
    "add_adapter": (
        lambda: net_with("one"),
        lambda net, _: net.add_adapter("two", extract_adapters(net.module)),
    ),
    "activate": (lambda: net_with("one", "two"), lambda net, _: net.activate("one")),
    "deactivate": (lambda: net_with("one", "two"), lambda net, _: net.deactivate()),
    "delete_adapter": (lambda: net_with("one", "two"), lambda net, _: net.delete_adapter("two")),
    "load_adapters": (
        lambda: net_with("one"),
        lambda net, file: net.load_adapters(file, wrappers=[ToyScale]),
    ),
}


def moments(calls):
    """The numbers of the calls to interrupt: some at the start, and all at the end."""
    early = range(1, max(1, calls - LAST) + 1)
    return sorted({*early[:: max(1, len(early) // (MOMENTS - LAST))], *range(1, calls + 1)[-LAST:]})


@pytest.mark.parametrize("name", CONTROLS)
def test_a_control_that_is_interrupted_has_changed_nothing(name, file):
    make, control = CONTROLS[name]
    control(make(), file)  # compiles
    counter, net = Interrupt(), make()
    counter.during(lambda: control(net, file))
    assert counter.calls > 0
    for moment in moments(counter.calls):
        net = make()
        before = state_of(net)
        with pytest.raises(KeyboardInterrupt):
            Interrupt(moment).during(lambda net=net: control(net, file))
        assert state_of(net) == before, f"call {moment} of {counter.calls}"


def test_a_block_without_adapters_that_is_interrupted_leaves_the_net_as_it_was():
    def block(net):
        with net.disabled():
            net.summary()

    counter, net = Interrupt(), net_with("one").mask("c")
    block(net)  # what is cached is not called again
    counter.during(lambda: block(net))
    for moment in moments(counter.calls):
        net = net_with("one").mask("c")
        before = state_of(net)
        with pytest.raises(KeyboardInterrupt):
            Interrupt(moment).during(lambda net=net: block(net))
        assert state_of(net) == before, f"call {moment} of {counter.calls}"


def test_an_interrupted_application_leaves_the_model_as_it_was():
    leaves = jtu.tree_leaves(LAYERS)

    def apply():
        apply_lora(LAYERS, 1, key=KEYS[0], wrappers=Rebuilding)

    apply()  # compiles
    counter = Interrupt()
    counter.during(apply)
    for moment in moments(counter.calls):
        with pytest.raises(KeyboardInterrupt):
            Interrupt(moment).during(apply)
        assert all(x is y for x, y in zip(leaves, jtu.tree_leaves(LAYERS), strict=True))


HOOK = """
    import {gate} as gate

    @hookimpl
    def jno_lora_wrappers():
        gate.turns.append(1)
        if len(gate.turns) == 1:
            raise KeyboardInterrupt
        return [adapter("Patient")]
"""


def test_a_plugin_whose_loading_was_interrupted_is_loaded_at_the_next_question(site, monkeypatch):
    gate = types.ModuleType("jno_lora_test_gate")
    gate.turns = []
    monkeypatch.setitem(sys.modules, gate.__name__, gate)
    site.install("patient-lora", HOOK.format(gate=gate.__name__))
    registry = Registry()
    with pytest.raises(KeyboardInterrupt):
        registry.records()
    assert [record.status for record in registry.records()] == ["loaded"]
    assert registry.resolve("Patient")[0].__name__ == "Patient"


def test_an_object_whose_registration_was_interrupted_can_be_registered_again():
    class Plugin:
        turns = 0

        @jno.lora.hookimpl
        def jno_lora_wrappers(self):
            Plugin.turns += 1
            if Plugin.turns == 1:
                raise KeyboardInterrupt
            return [ToyScale]

    registry, plugin = Registry(discover=False), Plugin()
    with pytest.raises(KeyboardInterrupt):
        registry.register(plugin)
    registry.register(plugin)
    assert registry.resolve("ToyScale") == (ToyScale,)


def test_wherever_a_listing_is_interrupted_the_next_one_is_whole(site):
    site.install_zoo()
    site.plugin("acme-lora", '"Acme"')
    site.plugin("bolt-lora", '"Bolt"')
    Registry().records()  # imports the modules
    counter = Interrupt()
    counter.during(Registry().records)
    for moment in moments(counter.calls):
        registry = Registry()
        with pytest.raises(KeyboardInterrupt):
            Interrupt(moment).during(registry.records)
        found = {record.distribution: record.status for record in registry.records()}
        assert found == dict.fromkeys(["jno-lora-zoo", "acme-lora", "bolt-lora"], "loaded")
        assert len(registry.resolve("Acme")) == 1, f"call {moment} of {counter.calls}"
