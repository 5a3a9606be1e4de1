"""Ctrl-C at any moment leaves a net as it was: the model, what trains, the mask, and the names.

How the tests interrupt is in `interrupting`; for `compare` see the tests of jno-lora-compare.
"""

import equinox as eqx
import jax
import pytest

import jno.lora
from jno.lora import Net, Registry, apply_lora, extract_adapters, save_adapters

from .interrupting import Interrupt, moments, state_of
from .toys import ToyScale

# The adapters here come from no plugin, and none is looked for.
pytestmark = pytest.mark.usefixtures("registry")


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
    adapted = apply_lora(LAYERS, 1, key=KEYS[0], wrapper=ToyScale, target="b|c")
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


def summary_of_base(net):
    with net.disabled():
        net.summary()


# name: (how the net is made, what is interrupted)
CONTROLS = {
    "disabled": (lambda: net_with("one").mask("c"), lambda net, _: summary_of_base(net)),
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
        lambda: net_with("one").deactivate().lora(1, wrapper=Rebuilding, target="a|b"),
        lambda net, file: net.load_adapters(file, wrappers=[ToyScale]),
    ),
}


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
