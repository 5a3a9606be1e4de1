"""Several adapters active at once: their changes are added and nothing is lost."""

import json
import pickle

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from safetensors.numpy import load_file, save_file
from tests.core.toys import Block, ToyBlock, ToyScale
from zoo_cases.models import train, trained, trains

from jno.lora import (
    CheckpointError,
    Net,
    SelectionError,
    apply_lora,
    extract_adapters,
    merge_lora,
    read_adapters,
    save_adapters,
    swap_adapters,
)
from jno.lora.extending import Member
from jno_lora_combine import AdapterSum, combine, split_adapters, sum_adapters, to_lora
from jno_lora_train import optim
from jno_lora_zoo import LoRALinear

LAYER = eqx.nn.Linear(4, 4, key=jax.random.key(0))
MODEL = {"x": LAYER, "y": eqx.nn.Linear(4, 4, key=jax.random.key(1))}
V = jnp.linspace(-1.0, 1.0, 4)


def set_of(wrapper="lora", seed=1, model=MODEL, **arguments):
    """A trained set."""
    return extract_adapters(trained(model, wrapper, seed, alpha=4.0, **arguments))


A, B = set_of(seed=1), set_of(seed=2)
ONLY_X = set_of(seed=1, target="^x$")
DORA = set_of("dora", 3, target="^x$")


def net_of(model=MODEL, **sets):
    net = Net(model).freeze()
    for name, adapters in (sets or {"a": A, "b": B}).items():
        net.add_adapter(name, adapters)
    return net


def by_hand(sets, weights, model=MODEL):
    """By path, the weight of the sum, in float64, from the merged models of the single sets."""
    merged = {name: merge_lora(swap_adapters(model, sets[name])) for name in weights}
    expected = {}
    for path, layer in model.items():
        W = np.asarray(layer.weight, np.float64)
        ends = {name: np.asarray(m[path].weight, np.float64) for name, m in merged.items()}
        slices = {n: np.asarray(w, np.float64)[..., None, None] for n, w in weights.items()}
        expected[path] = W + sum(slices[name] * (end - W) for name, end in ends.items())
    return expected


def test_the_old_adapters_stay_active_while_the_new_ones_train():
    sets = {"old": A, "new": set_of(seed=2, target="^y$"), "dora": DORA}
    net = net_of(**sets).activate("old", "dora", "new", weights={"old": 0.5}, train=["new"])
    assert net.active == ("old", "dora", "new")  # the order of the weights
    assert trains(net) == {f"y/trained/new/lora_{side}" for side in "AB"}
    merged = merge_lora(net.module)
    for path, expected in by_hand(sets, {"old": 0.5, "dora": 1.0, "new": 1.0}).items():
        np.testing.assert_allclose(merged[path].weight, expected, rtol=1e-5, atol=1e-6)
        y = net.module[path](V)
        np.testing.assert_allclose(y, merged[path](V), rtol=1e-5, atol=1e-6)
    with net.disabled():
        assert jnp.array_equal(net.module["x"](V), LAYER(V)) and net.active is None

    y, moved = train(net, 0.1).module["y"](V), net.adapter("new")
    assert jnp.array_equal(moved["y"].state["lora_A"], sets["new"]["y"].state["lora_A"] + 0.1)
    assert eqx.tree_equal(net.adapter("old"), A)
    assert net.activate("new").active == "new" and eqx.tree_equal(net.adapter("new"), moved)
    net.activate("dora", "old", "new", weights={"old": 0.5})
    assert trains(net) == set()
    np.testing.assert_allclose(net.module["y"](V), y, rtol=1e-5, atol=1e-6)
    assert "Sum(dora, old)" in str(net.summary())
    assert net.deactivate().active is None and jnp.array_equal(net.module["x"](V), LAYER(V))
    net.activate("old", "new").merge()
    assert net.adapters == ("dora",)


# --- weights


def test_one_weight_for_all_layers_by_a_function():
    def y(w):
        return jnp.sum(sum_adapters(MODEL, {"a": A, "b": B}, weights={"a": w})["x"](V))

    numeric = (np.float64(y(1.01)) - np.float64(y(0.99))) / 0.02
    assert float(jax.grad(y)(1.0)) == pytest.approx(numeric, rel=1e-2)


def test_weights_of_a_transformation_are_refused_and_the_sets_stay():
    net = Net(eqx.nn.Linear(2, 2, key=jax.random.key(0))).lora(1).add_adapter("a")
    net.add_adapter("b", net.adapter("a"))

    def loss(weight):
        net.activate("a", "b", weights={"a": weight})
        return weight

    with pytest.raises(SelectionError, match=r"sum_adapters\(model, sets, weights=weights\)"):
        jax.grad(loss)(1.0)
    assert net.active == "a"


def test_a_net_keeps_learned_weights():
    net = net_of(a=A, b=ONLY_X)
    net.activate("a", "b", weights="train")
    assert trains(net) == {"x/weights", "y/weights"}
    train(net, 0.5)
    learned = [[1.5, 1.5], [1.5]]

    def weights():
        return [net.module[name].weights.tolist() for name in "xy"]

    for leave in (net.deactivate, lambda: net.activate("a"), lambda: net.activate("b", train=[])):
        leave()
        assert net.activate("a", "b").active == ("a", "b") and weights() == learned
        assert trains(net) == set()
    train(net.activate("a", "b", weights="train"), 1.0)
    assert net.activate("a", "b").module["y"].weights.tolist() == [2.5]
    net.activate("b", "a", weights={"a": 2.0})
    assert net.active == ("b", "a") and weights() == [[1.0, 2.0], [2.0]]
    # Sets that are in the model are not kept twice.
    assert not any(net._state.sets.stored[name].adapters for name in ("a", "b"))
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
    # A set of which nothing trains any more, although it shall.
    net.mask("lora_").freeze()
    with pytest.warns(UserWarning, match=r"No array of the adapters 'b' trains"):
        net.activate("a", "b", train=["b"])
    assert not trains(net)
    net.mask("trained/b/").unfreeze()
    assert len(trains(net)) == 4
    assert len(trains(net.freeze().train_adapters())) == 4
    weights = {f"{layer}/weights" for layer in "xy"}
    assert trains(net.activate("a", "b", weights="train").train_adapters()) == weights
    with pytest.raises(SelectionError, match="`train` names them"):
        net.activate("a", "b").train_adapters()


def test_weights_have_the_precision_of_the_adapters():
    with jax.enable_x64(True):
        layer = sum_adapters(MODEL, {"a": A, "b": B})["x"]
        assert layer.weights.dtype == jnp.float32
        model = jax.tree.map(lambda a: a.astype(jnp.float64), MODEL)
        wide = set_of(model=model)
        assert sum_adapters(model, {"a": wide, "b": wide})["x"].weights.dtype == jnp.float64


def test_lora_fa_corrects_by_the_weight():
    plain = net_of(a=set_of("lora-fa", 1), b=B)
    alone = plain.activate("a")
    expected = optim.lora_fa(alone.module).init(alone.partition()[0]).preconditioners["x/lora_B"]
    for weight, factor in [(1.0, 1.0), (2.0, 0.25), (0.0, 0.0)]:
        net = plain.activate("a", "b", weights={"a": weight}, train=["a"])
        state = optim.lora_fa(net.module).init(net.partition()[0]).preconditioners
        np.testing.assert_allclose(state["x/trained/a/lora_B"], factor * expected, rtol=1e-6)
    net = plain.activate("a", "b", weights="train", train=["a"])
    with pytest.raises(SelectionError, match="the weights of the sum at 'x' train"):
        optim.lora_fa(net.module).init(net.partition()[0])


# --- stacks, half precision, meshes, and adapters that replace the weight


def test_layers_of_a_stack_and_half_precision():
    keys = jax.random.split(jax.random.key(0), 3)
    stack = eqx.filter_vmap(lambda key: eqx.nn.Linear(4, 4, dtype=jnp.bfloat16, key=key))(keys)
    model = {"blocks": stack}
    few = {name: set_of(seed=seed, model=model) for seed, name in enumerate("abc")}
    summed = sum_adapters(model, few, weights={"b": 0.5}, train=["a"])  # rank 6 of 4

    def run(blocks, x):
        arrays, rest = eqx.partition(blocks, eqx.is_array)
        return jax.lax.scan(lambda x, layer: (eqx.combine(layer, rest)(x), None), x, arrays)[0]

    x = jnp.ones(4, jnp.bfloat16)
    y, merged = eqx.filter_jit(lambda m, x: (run(m["blocks"], x), run(merge_lora(m)["blocks"], x)))(
        summed, x
    )
    joined = combine([extract_adapters(summed)], [1.0])
    assert joined["blocks"].rank == 4
    assert y.dtype == jnp.bfloat16 and summed["blocks"].weights.shape == (3, 3)
    np.testing.assert_allclose(
        *(np.asarray(v, np.float32) for v in (y, merged)), rtol=0.1, atol=0.1
    )
    # An infinite bias stays.
    model = {"x": eqx.tree_at(lambda layer: layer.bias, LAYER, LAYER.bias.at[0].set(-jnp.inf))}
    model = jax.tree.map(lambda a: a.astype(jnp.bfloat16), model)
    adapted = sum_adapters(model, {v: set_of(v, model=model) for v in ("lora", "dora")})
    assert merge_lora(adapted)["x"].bias[0] == -jnp.inf == adapted["x"](x)[0]


def test_slices_of_a_stack_have_their_weights():
    keys = jax.random.split(jax.random.key(0), 2)
    model = {"s": eqx.filter_vmap(lambda key: eqx.nn.Linear(4, 4, key=key))(keys)}
    sets = {"a": set_of(model=model), "d": set_of("dora", 2, model=model)}
    net = net_of(model, **sets).activate("a", "d", weights="train")
    weights = jnp.asarray([[0.5, 2.0], [-1.0, 0.25]])
    net.update(eqx.tree_at(lambda m: m["s"].weights, net.partition()[0], weights))
    merged = merge_lora(net.activate("a").activate("a", "d").module)["s"].weight
    expected = by_hand(sets, {"a": weights[:, 0], "d": weights[:, 1]}, model)["s"]
    np.testing.assert_allclose(merged, expected, atol=2e-6)


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


# They replace the weight, rotate it, or change the bias too.
@pytest.mark.parametrize("method", ["pissa", "oft", "road"])
def test_a_member_of_any_method_is_an_adapter_of_the_layer(method):
    sets = {"m": set_of(method, 3), "a": A}
    summed = sum_adapters(MODEL, sets)
    W = by_hand(sets, {"m": 1.0, "a": 1.0})["x"]
    alone = swap_adapters(MODEL, sets["m"])["x"]
    merged = merge_lora(summed)["x"]
    np.testing.assert_allclose(merged.weight, W, atol=2e-6)
    np.testing.assert_allclose(merged.bias, merge_lora(alone).bias, atol=1e-6)
    np.testing.assert_allclose(summed["x"](V), W @ np.asarray(V) + merged.bias, atol=1e-5)
    np.testing.assert_allclose(summed["x"].member("m")(V), alone(V), atol=1e-5)
    assert eqx.tree_equal(split_adapters(summed), sets)
    with Net(summed).disabled() as net:
        np.testing.assert_allclose(net.module["x"](V), LAYER(V), atol=1e-6)


def test_a_sum_of_products_becomes_plain_lora_without_loss():
    summed = sum_adapters(MODEL, {"a": A, "b": B}, weights={"b": 0.5})
    lora, report = to_lora(summed)
    assert all(float(row.error) == 0 for row in report)
    np.testing.assert_allclose(lora["x"](V), summed["x"](V), rtol=1e-5, atol=1e-6)
    # `combine` takes the sum as one set: 2 (U_a + 0.5 U_b) + U_a.
    merged = merge_lora(swap_adapters(MODEL, combine([extract_adapters(summed), A], [2.0, 1.0])))
    for path, W in by_hand({"a": A, "b": B}, {"a": 3.0, "b": 1.0}).items():
        np.testing.assert_allclose(merged[path].weight, W, rtol=1e-5, atol=1e-6)
    mixed = sum_adapters(MODEL, {"a": A, "dora": DORA})
    with pytest.raises(SelectionError, match=r"'x' is not a .*'dora' \(DoRALinear\)"):
        combine([extract_adapters(mixed)], [1.0])


# --- files and pickles


def test_one_file_holds_the_sets_with_their_names(tmp_path):
    net = net_of(a=A, d=DORA).activate("a", "d", weights={"d": -2.0}, train=["d"])
    net.save_adapters(path := tmp_path / "sum.safetensors", metadata={"nu": 0.1})
    assert set(split_adapters(read_adapters(path))) == {"a", "d"}
    loaded = Net(MODEL).freeze().load_adapters(path)
    assert loaded.active == ("a", "d") and trains(loaded) == trains(net)
    assert eqx.tree_equal(loaded.module, net.module)
    with pytest.raises(SelectionError, match="cannot change a sum of adapters"):
        loaded.load_adapters(path)
    with pytest.raises(SelectionError, match="the model carries adapters already"):
        Net(MODEL).lora(1).load_adapters(path)
    with pytest.raises(SelectionError, match="has adapters of these names"):
        loaded.deactivate().load_adapters(path)
    # A model without a handle, of which nothing trains.
    few = {"a": A, "b": B}
    save_adapters(sum_adapters(MODEL, few), path)
    assert eqx.tree_equal(split_adapters(read_adapters(path)), few)
    # Damaged descriptions.
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    description, tensors = header["__metadata__"]["jno.lora"], load_file(path)
    assert '"format_version": 4' in description
    for old, new, message in [
        ('"trains": false', '"trains": 0', "trains is 0, which is not"),
        ('"wrapper": "LoRALinear"', '"wrapper": "exit()"', "not a name in Python"),
        ('"members"', '"parts"', "differ in having members"),
    ]:
        assert old in description
        save_file(tensors, path, metadata={"jno.lora": description.replace(old, new)})
        with pytest.raises(CheckpointError, match=message):
            read_adapters(path)


@pytest.mark.parametrize("name", ["weights", "trained", "x.y:z Größe"])
def test_odd_names(name, tmp_path):
    net = net_of(**{name: A, "b": B}).activate(name, "b", weights={name: 2.0}, train=[name])
    assert eqx.tree_equal(net.adapter(name), A)
    net.save_adapters(tmp_path / "sum.safetensors")
    loaded = Net(MODEL).freeze().load_adapters(tmp_path / "sum.safetensors")
    assert loaded.adapters == (name, "b") and eqx.tree_equal(loaded.module, net.module)


def test_classes_of_sums_are_pickled():
    summed = extract_adapters(sum_adapters(MODEL, {"a": A, "b": B}, weights="train"))
    assert eqx.tree_equal(pickle.loads(pickle.dumps(summed)), summed)
    members = (Member("a", LoRALinear, 2, 4.0),)
    assert AdapterSum.of_members(members, False) is AdapterSum.of_members(
        (Member("a", LoRALinear, 2, 4.0),), False
    )
    assert AdapterSum.of_members(members, False) is not AdapterSum.of_members(members, True)


# --- what is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sets": {"a/b": 1}}, "'a/b' must be a printable text"),
        ({"sets": {"": 1}}, "without a slash, and not empty"),
        ({"sets": {"a": 1}}, "must be an AdapterSet"),
        ({"weights": 0.5}, "a dict of numbers by name, or 'train', but is 0.5"),
        ({"weights": {"odl": 1}}, "'odl' is not among .*Did you mean 'old'"),
        ({"weights": {"old": "1"}}, r"`weights\['old'\]` must be one real number"),
        ({"train": ["nwe"]}, "Did you mean 'new'"),
        ({"model": {"z": LAYER}}, "The adapters 'old' do not fit the model"),
    ],
)
def test_arguments_that_make_no_sense(arguments, message, unchecked):
    with pytest.raises(SelectionError, match=message):
        sum_adapters(**{"model": MODEL, "sets": {"old": A, "new": B}, **arguments})


class Unmergeable(ToyScale):
    mergeable = False


class Another(Unmergeable):
    pass


def test_adapters_that_cannot_be_added_are_refused():
    shifts = {
        cls.__name__: extract_adapters(apply_lora(MODEL, 1, key=jax.random.key(0), wrapper=cls))
        for cls in (Unmergeable, Another)
    }
    with pytest.raises(SelectionError, match=r"and 'Another' .* do not change the weight"):
        sum_adapters(MODEL, shifts)
    with pytest.raises(SelectionError, match=r"'u' .* does not change the weight"):
        sum_adapters(MODEL, {"a": A, "u": shifts["Another"]})
    with pytest.raises(SelectionError, match=r"'t' .* shares arrays between layers"):
        sum_adapters(MODEL, {"a": A, "t": set_of("tied-lora")})
    summed = extract_adapters(sum_adapters(MODEL, {"a": A}))
    with pytest.raises(SelectionError, match=r"'s' \(Sum\(a\)\) is a sum itself"):
        sum_adapters(MODEL, {"s": summed})
    for one, two in (("PSOFT", "PSOFT"), ("OFT", "HRA")):
        rotations = {"p": set_of(one, 1), "q": set_of(two, 2)}
        message = rf"'p' \({one}Linear\) and 'q' \({two}Linear\) rotate"
        with pytest.raises(SelectionError, match=message):
            sum_adapters(MODEL, rotations)
    block = {"block": Block(4, key=jax.random.key(0))}
    outer = extract_adapters(apply_lora(block, 1, key=jax.random.key(0), wrapper=ToyBlock))
    inner = set_of(model=block, target="up")
    with pytest.raises(SelectionError, match="block/up: inside the adapted 'block'"):
        sum_adapters(block, {"inner": inner, "outer": outer})
    with pytest.raises(SelectionError, match="takes sums of adapters, but 'x' has a LoRA"):
        split_adapters(A)


class Weighted(eqx.nn.Linear):
    weights: jax.Array

    def __init__(self):
        super().__init__(4, 4, key=jax.random.key(0))
        self.weights = jnp.ones(2)


def test_a_sum_hides_no_field_of_its_layer():
    a = set_of(model={"x": Weighted()})
    message = r"'x'.*\n?.*would hide the fields \['weights'\] of the Weighted"
    with pytest.raises(SelectionError, match=message):
        sum_adapters({"x": Weighted()}, {"a": a, "b": a})


def test_what_a_net_with_a_sum_refuses(unchecked):
    net = net_of()
    for verb in (net.activate, net.delete_adapter, net.add_adapter):
        with pytest.raises(SelectionError, match=r"must be a string.*net.activate\('a', 'b'\)"):
            verb(["a", "b"])
    for names in ((), ("a", "a")):
        with pytest.raises(SelectionError, match="one name or several, each once"):
            net.activate(*names)
    net.activate("a", "b")
    for verb in (lambda: net.lora(2), lambda: net.delete_adapter("a")):
        with pytest.raises(SelectionError, match="cannot change a sum of adapters"):
            verb()
    with pytest.raises(SelectionError, match=r"carries 'a' and 'b'.*net\.adapter\(name\)"):
        net.add_adapter("c")
    assert net.add_adapter("c", net.adapter("a")).delete_adapter("c").adapters == ("a", "b")
    with pytest.raises(SelectionError, match=r"are a sum of several sets.*split_adapters"):
        net.add_adapter("both", extract_adapters(net.module))


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
