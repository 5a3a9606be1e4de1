"""Sums of adapters lose nothing: weights, masks, classes, papers and names; the rest is refused."""

import pickle

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tests.zoo.combining._tools import trains

from jno.lora import (
    LoRAWrapper,
    Net,
    SelectionError,
    apply_lora,
    citation,
    extract_adapters,
    lora_trainable_filter,
    merge_lora,
    optim,
    split_adapters,
    sum_adapters,
    swap_adapters,
)
from jno.lora._commands.inspection import as_table, inspect
from jno.lora._sets import Member, _sum, sum_class
from jno_lora_zoo import DoRALinear, LoRALinear

LAYER = eqx.nn.Linear(4, 4, key=jax.random.key(0))
MODEL = {"x": LAYER, "y": eqx.nn.Linear(4, 4, key=jax.random.key(1))}
V = jnp.linspace(-1.0, 1.0, 4)


def set_of(wrapper="lora", seed=1, model=MODEL, **arguments):
    adapted = apply_lora(model, 2, 4.0, key=jax.random.key(seed), wrapper=wrapper, **arguments)
    noise = np.random.default_rng(seed)

    def move(array, trains):
        step = 0.3 * noise.normal(size=np.shape(array)) if trains else 0.0
        return array + jnp.asarray(step, array.dtype) if trains else array

    return extract_adapters(jax.tree.map(move, adapted, lora_trainable_filter(adapted)))


A, B = set_of(seed=1), set_of(seed=2)
ONLY_X = set_of(seed=1, target="^x$")


def net_of(**sets):
    net = Net(MODEL).freeze()
    for name, adapters in (sets or {"a": A, "b": B}).items():
        net.add_adapter(name, adapters)
    return net


def updated(net, by):
    return net.update(jax.tree.map(lambda a: a + by, net.partition()[0]))


def test_a_net_keeps_learned_weights():
    net = net_of(a=A, b=ONLY_X)
    updated(net.activate("a", "b", weights="train"), 0.5)
    learned = [[1.5, 1.5], [1.5]]

    def weights():
        return [net.module[name].weights.tolist() for name in "xy"]

    for leave in (net.deactivate, lambda: net.activate("a"), lambda: net.activate("b", train=[])):
        leave()
        assert net.activate("a", "b").active == ("a", "b") and weights() == learned
        assert trains(net) == set()
    updated(net.activate("a", "b", weights="train"), 1.0)
    assert net.activate("a", "b").module["y"].weights.tolist() == [2.5]
    net.activate("b", "a", weights={"a": 2.0})
    assert net.active == ("b", "a") and weights() == [[1.0, 2.0], [2.0]]
    with net.disabled():
        assert net.active is None
    # Sets that are in the model are not kept twice.
    assert not any(net._state.named[name].adapters for name in ("a", "b"))
    net.deactivate().delete_adapter("b").add_adapter("b", B)  # another set
    assert net.activate("a", "b").module["x"].weights.tolist() == [1.0, 1.0]


def test_a_net_keeps_the_masks_of_its_sets():
    net = net_of()
    net.activate("a").mask("lora_A").freeze()
    assert trains(net.activate("a", "b", train=["a"])) == {f"{n}/trained/a/lora_B" for n in "xy"}
    assert trains(net.activate("a", "b", train=["b"])) == {
        f"{layer}/trained/b/lora_{side}" for layer in "xy" for side in "AB"
    }
    net.mask("trained/b/lora_B").freeze()
    assert trains(net.activate("a")) == {"x/lora_B", "y/lora_B"}
    assert trains(net.activate("b")) == {"x/lora_A", "y/lora_A"}


class Shift(LoRAWrapper):
    """An adapter of layers and blocks."""

    adapter_fields = ("delta",)
    base: eqx.Module
    delta: jax.Array

    @classmethod
    def applies_to(cls, leaf):
        return isinstance(leaf, eqx.nn.Linear | eqx.nn.MLP)

    def __init__(self, base, *, key):
        self.base, self.delta = base, jnp.zeros(())

    def __call__(self, x):
        return self.merge()(x)

    def merge(self):
        return eqx.tree_at(lambda m: m.weight, self.base, self.base.weight + self.delta)


def test_wrong_names_say_what_to_do(unchecked):
    net = net_of()
    for verb in (net.activate, net.delete_adapter, net.add_adapter):
        with pytest.raises(SelectionError, match=r"must be a string.*net.activate\('a', 'b'\)"):
            verb(["a", "b"])
    net.activate("a", "b")
    with pytest.raises(SelectionError, match=r"carries 'a' and 'b'.*net\.adapter\(name\)"):
        net.add_adapter("c")
    net.add_adapter("c", net.adapter("a"))
    with pytest.raises(SelectionError, match=r"are a sum of several sets.*split_adapters"):
        net.add_adapter("both", extract_adapters(net.module))


@pytest.mark.parametrize("name", ["weights", "trained", "x.y:z Größe"])
def test_odd_names(name, tmp_path):
    net = net_of(**{name: A, "b": B}).activate(name, "b", weights={name: 2.0}, train=[name])
    assert eqx.tree_equal(net.adapter(name), A)
    net.save_adapters(tmp_path / "sum.safetensors")
    loaded = Net(MODEL).freeze().load_adapters(tmp_path / "sum.safetensors")
    assert loaded.adapters == (name, "b") and eqx.tree_equal(loaded.module, net.module)
    with pytest.raises(SelectionError, match="without a slash, and not empty"):
        net_of(**{"": A, "b": B}).activate("", "b")


def test_classes_of_sums_are_pickled():
    summed = extract_adapters(sum_adapters(MODEL, {"a": A, "b": B}, weights="train"))
    assert eqx.tree_equal(pickle.loads(pickle.dumps(summed)), summed)
    members = (Member("a", LoRALinear, 2, 4.0),)
    assert sum_class(members, False) is sum_class((Member("a", LoRALinear, 2, 4.0),), False)
    assert sum_class(members, False) is not sum_class(members, True)


def test_members_are_searched_before_the_registry(monkeypatch):
    def refuse(_):
        raise AssertionError("asked the registry")

    monkeypatch.setattr(_sum, "default_registry", refuse)
    y = sum_adapters(MODEL, {"a": A, "p": set_of("pissa", 3)})["x"](V)
    monkeypatch.undo()
    ends = [merge_lora(swap_adapters(MODEL, s))["x"].weight for s in (A, set_of("pissa", 3))]
    expected = eqx.tree_at(lambda m: m.weight, LAYER, sum(ends) - LAYER.weight)
    np.testing.assert_allclose(y, expected(V), atol=1e-5)


def test_papers_and_listings_name_the_members(tmp_path):
    net = net_of(a=A, d=set_of("dora", 3)).activate("a", "d")
    for cls in (LoRALinear, DoRALinear):
        assert cls.about.bibtex.strip() in citation(net.module)
    assert "no reference" not in citation(net.module)
    net.save_adapters(path := tmp_path / "sum.safetensors")
    table = str(as_table(inspect(path, values=False)))
    assert "a: LoRALinear + d: DoRALinear" in table and "jno-lora-zoo" in table


def test_plain_adapters_beside_a_sum():
    mixed = swap_adapters(MODEL, set_of(target="^y$"))
    summed = sum_adapters({"x": LAYER}, {"a": ONLY_X, "b": set_of(seed=2, target="^x$")})
    net = Net(mixed | summed)
    assert net.active == ("a", "b") and eqx.tree_equal(net.adapter("a"), ONLY_X)
    for leave in (net.deactivate, lambda: net.activate("a")):
        with pytest.raises(SelectionError, match=r"beside a sum.*\n.*y\n.*net\.merge\(\)"):
            leave()
    x = net.module["x"](V)
    np.testing.assert_allclose(net.merge().module["x"](V), x, atol=1e-6)


def test_adapters_that_cannot_be_added_are_refused():
    with pytest.raises(SelectionError, match=r"'p' \(PSOFTLinear\) and 'q' \(PSOFTLinear\) rotate"):
        sum_adapters(MODEL, {"p": set_of("psoft", 1), "q": set_of("psoft", 2)})
    block = {"block": eqx.nn.MLP(4, 4, 4, 1, key=jax.random.key(0))}
    outer = extract_adapters(apply_lora(block, 1, key=jax.random.key(0), wrapper=Shift))
    inner = set_of(model=block, target="layers/0")
    with pytest.raises(SelectionError, match="block/layers/0: inside the adapted 'block'"):
        sum_adapters(block, {"inner": inner, "outer": outer})


class Weighted(eqx.nn.Linear):
    weights: jax.Array

    def __init__(self):
        super().__init__(4, 4, key=jax.random.key(0))
        self.weights = jnp.ones(2)


def test_a_sum_hides_no_field_of_its_layer():
    layer = Weighted()
    a = extract_adapters(apply_lora({"x": layer}, 1, key=jax.random.key(1), wrapper="lora"))
    message = r"'x'.*\n?.*would hide the fields \['weights'\] of the Weighted"
    with pytest.raises(SelectionError, match=message):
        sum_adapters({"x": layer}, {"a": a, "b": a})


def test_lora_fa_corrects_by_the_weight():
    plain = net_of(a=set_of("lora-fa", 1), b=B)
    states = []
    for weights in ({"a": 1.0}, {"a": 2.0}, {"a": 0.0}):
        net = plain.activate("a", "b", weights=weights, train=["a"])
        states.append(optim.lora_fa(net.module).init(net.partition()[0]).preconditioners)
    alone = plain.activate("a")
    expected = optim.lora_fa(alone.module).init(alone.partition()[0]).preconditioners["x/lora_B"]
    for state, factor in zip(states, (1.0, 0.25, 0.0), strict=True):
        np.testing.assert_allclose(state["x/trained/a/lora_B"], factor * expected, rtol=1e-6)
    net = plain.activate("a", "b", weights="train", train=["a"])
    with pytest.raises(SelectionError, match="the weights of the sum at 'x' train"):
        optim.lora_fa(net.module).init(net.partition()[0])


def test_a_member_that_replaces_the_weight_is_an_adapter_of_the_layer():
    pissa = set_of("pissa", 3)
    summed = sum_adapters(MODEL, {"p": pissa, "a": A})
    alone = swap_adapters(MODEL, pissa)["x"]
    np.testing.assert_allclose(summed["x"].member("p")(V), alone(V), atol=1e-5)
    assert eqx.tree_equal(split_adapters(summed)["p"], pissa)


def test_slices_of_a_stack_have_their_weights():
    keys = jax.random.split(jax.random.key(0), 2)
    model = {"s": eqx.filter_vmap(lambda key: eqx.nn.Linear(4, 4, key=key))(keys)}
    sets = {"a": set_of(model=model), "d": set_of("dora", 2, model=model)}
    net = Net(model).freeze()
    for name, adapters in sets.items():
        net.add_adapter(name, adapters)
    net.activate("a", "d", weights="train")
    weights = jnp.asarray([[0.5, 2.0], [-1.0, 0.25]])
    net.update(eqx.tree_at(lambda m: m["s"].weights, net.partition()[0], weights))
    merged = merge_lora(net.activate("a").activate("a", "d").module)["s"].weight
    W = np.asarray(model["s"].weight, np.float64)
    ends = [np.asarray(merge_lora(swap_adapters(model, s))["s"].weight) for s in sets.values()]
    changes = [w[:, None, None] * (end - W) for w, end in zip(weights.T, ends, strict=True)]
    np.testing.assert_allclose(merged, W + sum(changes), atol=2e-6)


def test_members_lie_on_the_mesh_of_their_layer():
    mesh = Mesh(np.array(jax.devices()[:2]), ("m",))
    spec = NamedSharding(mesh, PartitionSpec("m", None))
    model = {"x": eqx.tree_at(lambda m: m.weight, LAYER, jax.device_put(LAYER.weight, spec))}
    sets = {"a": set_of(seed=1, model=model), "b": set_of(seed=2, model=model)}
    layer, alone = sum_adapters(model, sets, train=["b"])["x"], swap_adapters(model, sets["a"])["x"]
    for member in (layer.frozen["a"], layer.trained["b"]):
        for name in ("lora_A", "lora_B"):
            assert getattr(member, name).sharding == getattr(alone, name).sharding
    assert alone.lora_B.sharding.spec == PartitionSpec("m", None)


def test_a_set_of_frozen_arrays_that_shall_train_warns():
    net = net_of(new=B).lora(2).add_adapter("old").freeze()
    net.mask("lora_").freeze()
    with pytest.warns(UserWarning, match=r"No array of the adapters 'old' trains"):
        net.activate("old", "new", train=["old"])
    assert not trains(net)
    net.mask("trained/old/").unfreeze()
    assert len(trains(net)) == 4


def test_weights_have_the_precision_of_the_adapters(monkeypatch):
    with jax.enable_x64(True):
        layer = sum_adapters(MODEL, {"a": A, "b": B})["x"]
        assert layer.weights.dtype == jnp.float32
        wide = set_of(model=jax.tree.map(lambda a: a.astype(jnp.float64), MODEL))
        model = jax.tree.map(lambda a: a.astype(jnp.float64), MODEL)
        assert sum_adapters(model, {"a": wide, "b": wide})["x"].weights.dtype == jnp.float64


def test_an_infinite_bias_in_half_precision_stays():
    model = {"x": eqx.tree_at(lambda layer: layer.bias, LAYER, LAYER.bias.at[0].set(-jnp.inf))}
    model = jax.tree.map(lambda a: a.astype(jnp.bfloat16), model)
    sets = {name: set_of(variant, model=model) for name, variant in (("a", "lora"), ("b", "dora"))}
    adapted = sum_adapters(model, sets)
    assert merge_lora(adapted)["x"].bias[0] == -jnp.inf
    assert adapted["x"](V.astype(jnp.bfloat16))[0] == -jnp.inf
