"""Several adapters of one `Net` by name: nothing is lost, and the base comes back bit for bit."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from zoo_cases.models import train, trains

from jno.lora import Net, SelectionError, extract_adapters, lora_trainable_filter, read_adapters
from jno_lora_combine import combine


@pytest.fixture(scope="module")
def model():
    keys = jax.random.split(jax.random.key(3), 2)
    return eqx.nn.Sequential([eqx.nn.Linear(5, 4, key=keys[0]), eqx.nn.Linear(4, 3, key=keys[1])])


@pytest.fixture(scope="module")
def new(model):
    """A set of both layers that nobody has trained."""
    return extract_adapters(Net(model).lora(2).module)


X = jnp.linspace(-1.0, 1.0, 5)


def with_two(model, two="lora"):
    """A net with the trained adapters "one" (inactive) and "two" (active), and their outputs."""
    net = train(Net(model).freeze().lora(2).add_adapter("one"))
    first = net(X)
    train(net.deactivate().lora(1, wrapper=two, target="layers/1"), 0.2).add_adapter("two")
    return net, first, net(X)


@pytest.mark.parametrize("other", ["dora", "pissa"])
def test_adapters_take_turns_and_keep_what_they_learnt(model, other):
    net, first, second = with_two(model, other)
    for name in ("one", "two"):
        net.activate(name)
        assert jax.tree.structure(net.trainable) == jax.tree.structure(net.module)
        assert eqx.tree_equal(net.trainable, lora_trainable_filter(net.module))
    assert net.adapters == ("one", "two") and net.active == "two"
    assert jnp.array_equal(net.activate("one")(X), first) and net.active == "one"
    third = train(net)(X)
    assert not jnp.array_equal(third, first)
    assert jnp.array_equal(net.activate("two")(X), second)
    assert jnp.array_equal(net.activate("one")(X), third)
    assert net.activate("one") is net


@pytest.mark.parametrize("variant", ["lora", "pissa"])
def test_without_adapters_the_net_is_the_base_bit_for_bit(model, variant):
    net = train(Net(model).freeze().lora(2, wrapper=variant).add_adapter("one"))
    module, trainable, adapted = net.module, net.trainable, net(X)
    with net.disabled() as inside:
        assert inside is net
        assert all(map(lambda a, b: a is b, *map(jax.tree.leaves, (net.module, model))))
        assert trains(net) == set() and net.partition()[1] is not None
        assert net.active is None and len(net.adapter("one")) == 2
        with net.disabled():
            assert jnp.array_equal(net(X), model(X))
        assert jnp.array_equal(net(X), model(X))
    assert net.module is module and net.trainable is trainable and net.active == "one"
    for _ in range(3):  # no drift either
        assert jnp.array_equal(net.deactivate()(X), model(X))
        assert jnp.array_equal(net.activate("one")(X), adapted)
    assert jnp.array_equal(net.unwrap()(X), model(X))


def test_everything_is_restored_when_the_block_raises_and_a_trained_base_stays(model):
    net = train(Net(model).freeze().lora(1)).mask("layers/0")
    module, trainable = net.module, net.trainable
    with pytest.raises(KeyError), net.disabled():
        raise KeyError
    assert net.module is module and net.trainable is trainable
    net.freeze()  # by the mask that was pending
    assert trains(net) == {"layers/1/lora_A", "layers/1/lora_B"}
    net = Net(model).freeze().lora(1, wrapper="pissa", target="layers/0")
    train(net.mask("layers/0/base").unfreeze(), 0.5)
    moved = net.module.layers[0].base.weight
    with net.disabled():
        expected = model.layers[0].weight + 0.5
        assert jnp.allclose(net.module.layers[0].weight, expected, atol=1e-6)
    assert net.module.layers[0].base.weight is moved


# --- what trains


def test_each_adapter_trains_as_it_did_when_it_was_put_away(model):
    net, *_ = with_two(model)
    assert trains(net) == {"layers/1/lora_A", "layers/1/lora_B"}
    net.mask("layers/1/lora_A").freeze().mask("layers/1/base/bias").unfreeze().activate("one")
    assert trains(net) == {f"layers/{i}/lora_{m}" for i in (0, 1) for m in "AB"}
    net.freeze().activate("two")
    assert trains(net) == {"layers/1/base/bias", "layers/1/lora_B"}
    assert trains(net.activate("one")) == set()
    assert trains(net.deactivate()) == set()


def test_a_set_that_is_new_trains_as_after_lora_and_what_is_outside_stays(model):
    other = extract_adapters(Net(model).lora(1, target="layers/0").module)
    net = Net(model).add_adapter("one", other)
    outside = {"layers/1/weight", "layers/1/bias"}
    assert net.active is None
    assert trains(net) == {"layers/0/weight", "layers/0/bias"} | outside
    assert trains(net.activate("one")) == {"layers/0/lora_A", "layers/0/lora_B"} | outside
    bias = train(net).module.layers[1].bias
    assert trains(net.deactivate()) == outside
    assert net.module.layers[1].bias is bias
    assert jax.tree.structure(net.trainable) == jax.tree.structure(net.module)


# --- names


def test_names_come_and_go(model):
    net, first, second = with_two(model)
    both = combine([net.adapter("one"), net.adapter("two")], [0.5, 0.5])
    net.add_adapter("both", both).activate("both")
    assert net.adapters == ("one", "two", "both")
    assert net.module.layers[1].rank == 3
    assert jnp.array_equal(net.activate("one")(X), first)
    net.delete_adapter("both").activate("two").delete_adapter("one")
    assert jnp.array_equal(net(X), second) and net.adapters == ("two",)
    assert jnp.array_equal(net.delete_adapter("two")(X), model(X)) and net.adapters == ()
    # Merging and unwrapping use the name up.
    net, _, second = with_two(model)
    assert jnp.allclose(net.merge()(X), second, atol=1e-5) and net.adapters == ("one",)
    net, *_ = with_two(model)
    assert jnp.array_equal(net.unwrap()(X), model(X)) and net.adapters == ("one",)
    # An empty set may be active.
    net = Net(model).add_adapter("none", extract_adapters(model)).activate("none")
    assert net.active == "none" and net.deactivate().active is None
    assert net.deactivate() is net


# --- an operation that raises has changed nothing


def refused(net, call, message):
    module, trainable, names, active = net.module, net.trainable, net.adapters, net.active
    with pytest.raises(SelectionError, match=message):
        call()
    assert net.module is module and net.trainable is trainable
    assert (net.adapters, net.active) == (names, active)


def test_adapters_without_a_name_are_never_lost(model, new):
    net = Net(model).add_adapter("one", new).lora(2)
    for call in (lambda: net.activate("one"), net.deactivate):
        refused(net, call, r"adapters without a name.*net.add_adapter\(name\)")


def test_a_file_does_not_replace_adapters_that_have_a_name(model, tmp_path):
    file = tmp_path / "b.safetensors"
    saved = train(Net(model).freeze().lora(2, target="layers/1"), 0.3)
    saved.save_adapters(file)

    def named():
        return train(Net(model).freeze().lora(2).add_adapter("a"))

    net, first = named(), named()(X)
    with pytest.raises(SelectionError, match=r"(?s)'a' are active.*layers/1") as caught:
        net.load_adapters(file)
    assert jnp.array_equal(net(X), first) and net.active == "a"

    # Both ways out, as the message has them.
    for advice in (r"net.deactivate()", r"net.add_adapter(name, jno.lora.read_adapters(path))"):
        assert advice in str(caught.value)
    net.deactivate().load_adapters(file)
    assert jnp.array_equal(net(X), saved(X)) and net.active is None
    net.add_adapter("b")
    other = named().add_adapter("b", read_adapters(file)).activate("b")
    for each in (net, other):
        assert jnp.array_equal(each(X), saved(X)) and each.adapters == ("a", "b")
        assert jnp.array_equal(each.activate("a")(X), first)

    # It replaces adapters without a name, and joins adapters at other layers.
    net = train(Net(model).freeze().lora(2)).load_adapters(file)
    assert jnp.array_equal(net.module.layers[1].lora_B, saved.module.layers[1].lora_B)
    net = Net(model).freeze().lora(2, target="layers/0").add_adapter("a").load_adapters(file)
    assert list(net.adapter("a")) == ["layers/0", "layers/1"]


def test_names_and_sets_that_are_wrong_taken_or_for_nothing(model):
    net, *_ = with_two(model)
    for call in (net.activate, net.delete_adapter, net.adapter):
        refused(net, lambda call=call: call("tow"), "No adapters are called 'tow'.*'two'")
    refused(net, lambda: net.add_adapter("one"), "called 'one' already")
    refused(net, lambda: net.add_adapter("three"), r"carries 'two'.*net.adapter\(name\)")
    bare = Net(model)
    refused(bare, lambda: bare.add_adapter("one"), "carries no adapters")
    refused(bare, lambda: bare.activate("one"), "No adapters are called 'one'")
    other = eqx.nn.Sequential([eqx.nn.Linear(5, 4, key=jax.random.key(0))] * 3)
    adapters = extract_adapters(Net(other).lora(1).module)
    refused(bare, lambda: bare.add_adapter("one", adapters), r"(?s)layers/1/weight.*layers/2: ")


EXCHANGES = {
    "activate": lambda net: net.activate("other"),
    "lora": lambda net: net.deactivate().lora(2),
    "unwrap": lambda net: net.unwrap().lora(2),
}


@pytest.mark.parametrize("way", EXCHANGES)
def test_trained_values_go_to_no_other_adapters(model, new, way):
    net = Net(model).freeze().add_adapter("other", new).lora(2).add_adapter("one")
    old, _ = net.partition()
    EXCHANGES[way](net)
    refused(net, lambda: net.update(old), r"exchanged after the last `net.partition\(\)`")
    train(net)


def test_trained_values_come_back_where_their_adapters_are(model, new):
    net = Net(model).freeze().lora(2).add_adapter("one").add_adapter("other", new)
    trainable, _ = net.partition()
    with net.activate("one").disabled():  # which exchanges nothing
        net.partition()
    assert net.update(trainable).update(trainable) is net
    net.activate("other")
    refused(net, lambda: net.update(trainable), "exchanged after the last")
    net.activate("one").update(jax.tree.map(jnp.ones_like, trainable))
    assert all(bool((x == 1).all()) for x in jax.tree.leaves(net.partition()[0]))
    # The last partition is what counts; and a net without adapters exchanges none.
    for each in (net.activate("other"), Net(model).merge().unwrap()):
        moved = jax.tree.map(lambda x: x + 1, each.partition()[0])
        assert eqx.tree_equal(each.update(moved).partition()[0], moved)


def test_a_pending_mask_or_a_disabled_net_refuses_changes(model):
    net, *_ = with_two(model)
    trainable, _ = net.partition()
    by_name = {"activate": ["one"], "deactivate": [], "delete_adapter": ["one"]}
    others = {"mask": ["layers"], "lora": [1], "freeze": [], "unfreeze": [], "merge": []}
    others |= {"update": [trainable], "unwrap": [], "add_adapter": ["three"]}
    with net.disabled():
        for verb, arguments in {**by_name, **others}.items():
            call = functools.partial(getattr(net, verb), *arguments)
            refused(net, call, rf"net.{verb}\(...\) was called in a `with net.disabled\(\)` block")
    net.mask("layers")
    for verb, arguments in by_name.items():
        call = functools.partial(getattr(net, verb), *arguments)
        refused(net, call, f"A mask is pending, but {verb}")
