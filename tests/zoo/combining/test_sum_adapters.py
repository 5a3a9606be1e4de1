"""Several adapters active at once: their changes are added, and each set keeps its name."""

import json
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tests.zoo.combining._tools import trains

from jno.lora import (
    CheckpointError,
    LoRAWrapper,
    Net,
    SelectionError,
    apply_lora,
    combine,
    extract_adapters,
    lora_report,
    lora_trainable_filter,
    merge_lora,
    read_adapters,
    save_adapters,
    split_adapters,
    sum_adapters,
    swap_adapters,
    to_lora,
)

X = jnp.linspace(-1.0, 1.0, 5)


@pytest.fixture(scope="module")
def model():
    keys = jax.random.split(jax.random.key(3), 2)
    return eqx.nn.Sequential([eqx.nn.Linear(5, 4, key=keys[0]), eqx.nn.Linear(4, 3, key=keys[1])])


def trained(model, seed, wrapper="lora", **arguments):
    adapted = apply_lora(model, 2, 4.0, key=jax.random.key(seed), wrapper=wrapper, **arguments)
    trainable, frozen = eqx.partition(adapted, lora_trainable_filter(adapted))
    noise = np.random.default_rng(seed)
    moved = jax.tree.map(
        lambda a: a + jnp.asarray(0.3 * noise.normal(size=a.shape), a.dtype), trainable
    )
    return extract_adapters(eqx.combine(moved, frozen))


@pytest.fixture(scope="module")
def sets(model):
    return {
        "old": trained(model, 1),
        "new": trained(model, 2, target="layers/1"),
        "dora": trained(model, 3, "dora", target="layers/0"),
    }


@pytest.fixture
def net(model, sets):
    net = Net(model).freeze()
    for name, adapters in sets.items():
        net.add_adapter(name, adapters)
    return net


def by_hand(model, sets, weights):
    """The weights of the sum, in float64, from the merged models of the single sets."""
    layers = []
    for index, layer in enumerate(model.layers):
        W = np.asarray(layer.weight, np.float64)
        merged = (merge_lora(swap_adapters(model, sets[name])).layers[index] for name in weights)
        ends = (np.asarray(layer.weight, np.float64) for layer in merged)
        layers.append(W + sum(w * (end - W) for w, end in zip(weights.values(), ends, strict=True)))
    return layers


def test_the_old_adapters_stay_active_while_the_new_ones_train(model, net, sets):
    weights = {"old": 0.5, "dora": 1.0, "new": 1.0}
    net.activate("old", "dora", "new", weights={"old": 0.5}, train=["new"])
    assert net.active == ("old", "dora", "new")  # the order of the weights
    assert trains(net) == {f"layers/1/trained/new/lora_{side}" for side in "AB"}
    merged = merge_lora(net.module)
    for layer, expected in zip(merged.layers, by_hand(model, sets, weights), strict=True):
        np.testing.assert_allclose(layer.weight, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(net(X), merged(X), rtol=1e-5, atol=1e-6)
    with net.disabled():
        assert jnp.array_equal(net(X), model(X)) and net.active is None

    trainable, _ = net.partition()
    net.update(jax.tree.map(lambda a: a + 0.1, trainable))
    y, moved = net(X), net.adapter("new")
    assert jnp.array_equal(
        moved["layers/1"].state["lora_A"], sets["new"]["layers/1"].state["lora_A"] + 0.1
    )
    assert eqx.tree_equal(net.adapter("old"), sets["old"])
    assert net.activate("new").active == "new"
    assert eqx.tree_equal(net.adapter("new"), moved)
    net.activate("dora", "old", "new", weights={"old": 0.5})
    assert trains(net) == set()
    np.testing.assert_allclose(net(X), y, rtol=1e-5, atol=1e-6)
    assert "Sum(dora, old)" in str(net.summary())
    assert net.deactivate().active is None and jnp.array_equal(net(X), model(X))
    net.activate("old", "new").merge()
    assert net.adapters == ("dora",)


class Gate(LoRAWrapper):
    """An adapter without a rank."""

    adapter_fields = ("gate",)
    base: eqx.nn.Linear
    gate: jax.Array

    def __init__(self, base, *, key):
        self.base, self.gate = base, jnp.ones(())

    @classmethod
    def applies_to(cls, leaf):
        return isinstance(leaf, eqx.nn.Linear)

    def __call__(self, x):
        return self.merge()(x)

    def merge(self):
        return eqx.tree_at(lambda m: m.weight, self.base, self.gate * self.base.weight)


def test_a_report_has_the_ranks_of_the_members(model, unchecked):
    def fresh(wrapper, rank):
        adapted = apply_lora(model, rank, key=jax.random.key(0), wrapper=wrapper)
        return extract_adapters(adapted)

    sets = {"a": fresh("lora", 1), "b": fresh("dora", 3)}
    gates = apply_lora(model, target="layers/0", key=jax.random.key(0), wrapper=Gate)
    sets["c"] = extract_adapters(gates)
    report = lora_report(sum_adapters(model, sets))
    assert [row.rank for row in report.rows] == [4, 4]
    assert re.findall(r"Sum\(.*\) .* (\S+\+\S+) ", str(report)) == ["1+3+-", "1+3"]
    assert lora_report(sum_adapters(model, {"c": sets["c"]})).rows[0].rank is None


def test_weights_are_learned_from_a_few_examples(model, sets):
    few = {"old": sets["old"], "new": trained(model, 4)}
    target = merge_lora(sum_adapters(model, few, weights={"old": 0.3, "new": -0.6}))
    xs = jax.random.normal(jax.random.key(8), (8, 5))
    net = Net(model).freeze()
    net.add_adapter("old", few["old"]).add_adapter("new", few["new"])
    trainable, frozen = net.activate("old", "new", weights="train").partition()
    assert trains(net) == {"layers/0/weights", "layers/1/weights"}

    @eqx.filter_jit
    def fit(trainable, frozen, xs, ys):
        def step(_, t):
            loss = lambda t: jnp.mean((jax.vmap(eqx.combine(t, frozen))(xs) - ys) ** 2)  # noqa: E731
            return jax.tree.map(lambda w, g: w - 0.2 * g, t, jax.grad(loss)(t))

        return jax.lax.fori_loop(0, 600, step, trainable)

    net.update(fit(trainable, frozen, xs, jax.vmap(target)(xs)))
    for layer in net.module.layers:
        np.testing.assert_allclose(layer.weights, [0.3, -0.6], atol=0.02)


def test_one_weight_for_all_layers_by_a_function(model, sets):
    few = {"old": sets["old"], "new": sets["new"]}
    gradient = jax.grad(lambda w: jnp.sum(sum_adapters(model, few, weights={"old": w})(X)))
    at = lambda w: np.float64(jnp.sum(sum_adapters(model, few, weights={"old": w})(X)))  # noqa: E731
    numeric = (at(1.01) - at(0.99)) / 0.02
    assert float(gradient(1.0)) == pytest.approx(numeric, rel=1e-2)


def test_one_file_holds_the_sets_with_their_names(model, net, tmp_path):
    net.activate("old", "dora", weights={"dora": -2.0}, train=["dora"])
    net.save_adapters(path := tmp_path / "sum.safetensors", metadata={"nu": 0.1})
    assert set(split_adapters(read_adapters(path))) == {"old", "dora"}
    loaded = Net(model).freeze().load_adapters(path)
    assert loaded.active == ("old", "dora") and trains(loaded) == trains(net)
    assert eqx.tree_equal(loaded.module, net.module)
    with pytest.raises(SelectionError, match="cannot change a sum of adapters"):
        loaded.load_adapters(path)
    with pytest.raises(SelectionError, match="the model carries adapters already"):
        Net(model).lora(1).load_adapters(path)
    with pytest.raises(SelectionError, match="has adapters of these names"):
        loaded.deactivate().load_adapters(path)
    # A model without a handle, of which nothing trains.
    few = {name: net.adapter(name) for name in ("old", "new")}
    save_adapters(sum_adapters(model, few), path)
    assert eqx.tree_equal(split_adapters(read_adapters(path)), few)


@pytest.mark.parametrize(
    ("pattern", "text", "message"),
    [
        (r'"trains": false', '"trains": 0', "trains is 0, which is not"),
        (r'"wrapper": "LoRALinear"', '"wrapper": "exit()"', "not a name in Python"),
        (r'"members"', '"parts"', "no plugin provides"),
    ],
)
def test_a_damaged_description_is_refused(net, tmp_path, pattern, text, message):
    net.activate("old", "new").save_adapters(path := tmp_path / "sum.safetensors")
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    description = header["__metadata__"]["jno.lora"]
    assert '"format_version": 4' in description
    damaged = re.sub(pattern, text, description)
    assert damaged != description
    save_file(load_file(path), path, metadata={"jno.lora": damaged})
    with pytest.raises(CheckpointError, match=message):
        read_adapters(path)


def test_layers_of_a_stack_and_half_precision():
    keys = jax.random.split(jax.random.key(0), 3)
    stack = eqx.filter_vmap(lambda key: eqx.nn.Linear(4, 4, dtype=jnp.bfloat16, key=key))(keys)
    model = {"blocks": stack}
    few = {"a": trained(model, 1), "b": trained(model, 2), "c": trained(model, 3)}
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


def test_a_sum_of_products_becomes_plain_lora_without_loss(model, sets):
    few = {"old": sets["old"], "new": sets["new"]}
    summed = sum_adapters(model, few, weights={"new": 0.5})
    lora, report = to_lora(summed)
    assert all(float(row.error) == 0 for row in report)
    np.testing.assert_allclose(lora(X), summed(X), rtol=1e-5, atol=1e-6)
    # `combine` takes the sum as one set: 2 (U_old + 0.5 U_new) + U_old.
    combined = combine([extract_adapters(summed), sets["old"]], [2.0, 1.0])
    merged = merge_lora(swap_adapters(model, combined))
    for layer, W in zip(merged.layers, by_hand(model, few, {"old": 3.0, "new": 1.0}), strict=True):
        np.testing.assert_allclose(layer.weight, W, rtol=1e-5, atol=1e-6)
    mixed = sum_adapters(model, {"old": sets["old"], "dora": sets["dora"]})
    with pytest.raises(SelectionError, match=r"'layers/0' is not a .*'dora' \(DoRALinear\)"):
        combine([extract_adapters(mixed)], [1.0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sets": {"a/b": 1}}, "'a/b' must be a printable text"),
        ({"sets": {"a\nb": 1}}, "must be a printable text"),
        ({"sets": {"a": 1}}, "must be an AdapterSet"),
        ({"weights": 0.5}, "a dict of numbers by name, or 'train', but is 0.5"),
        ({"weights": {"odl": 1}}, "'odl' is not among .*Did you mean 'old'"),
        ({"weights": {"old": "1"}}, r"`weights\['old'\]` must be one real number"),
        ({"train": "old"}, "'o' is not among the adapters to add"),
        ({"train": ["nwe"]}, "Did you mean 'new'"),
    ],
)
def test_arguments_that_make_no_sense(model, sets, arguments, message, unchecked):
    with pytest.raises(SelectionError, match=message):
        sum_adapters(**{"model": model, "sets": sets, **arguments})


def test_sets_that_cannot_be_added(model, sets, net):
    summed = extract_adapters(sum_adapters(model, {"old": sets["old"]}))
    with pytest.raises(SelectionError, match="'s' is a sum itself"):
        sum_adapters(model, {"s": summed})
    with pytest.raises(SelectionError, match="The adapters 'old' do not fit the model"):
        sum_adapters(model.layers[0], {"old": sets["old"]})
    with pytest.raises(SelectionError, match="takes sums of adapters, but 'layers/0' has a LoRA"):
        split_adapters(sets["old"])
    for names in ((), ("old", "old")):
        with pytest.raises(SelectionError, match="one name or several, each once"):
            net.activate(*names)
    net.activate("old", "new")
    for verb in (lambda: net.lora(2), lambda: net.delete_adapter("old")):
        with pytest.raises(SelectionError, match="cannot change a sum of adapters"):
            verb()
    assert net.delete_adapter("dora").adapters == ("old", "new")
