"""Members in one program: each computes and trains as it does alone."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jno.lora import JnoLoraWarning, Net, SelectionError, extract_adapters, merge_lora, resolve
from jno.lora.extending import equations_in
from jno_lora_conditional import Conditional, Function, Powers, at, merge
from jno_lora_quantized import quantize
from jno_lora_train import Trainer
from jno_lora_train.optim import lora_plus
from jno_lora_uncertainty import Ensemble, folds

KEY = jax.random.key(1)
MODEL = eqx.nn.MLP(3, 2, 4, 1, jnp.tanh, key=jax.random.key(0))
X = jax.random.normal(jax.random.key(2), (7, 3))
Y = jnp.sin(X[:, :2])


def loss(model, batch):
    x, y = batch
    return jnp.mean((jax.vmap(model)(x) - y) ** 2)


def net_of(wrapper="lora", model=MODEL):
    return lambda key: Net(model, key=key).freeze().lora(rank=2, wrapper=wrapper)


def conditional_of(key):
    return Conditional(net_of()(key), Powers(0.1))


def at_random(ensemble):
    """The ensemble with noise in its trained arrays."""
    noise = lambda x: x + 0.3 * jnp.cos(jnp.arange(x.size, dtype=x.dtype).reshape(x.shape))  # noqa: E731
    return ensemble.update(jax.tree.map(noise, ensemble.partition()[0]))


def test_folds_are_a_partition_and_members_train_on_all_other_rows():
    for parts, k in (
        (folds(11, 4, key=KEY), 4),
        (folds(values=[0.3, 0.1, 0.3, 0.2, 0.1, 0.3]), 3),
        (folds(values=np.array([[0, 1], [0, 1], [0, 2]])), 2),
    ):
        held_out = np.asarray(parts.held_out)
        assert held_out.shape[0] == len(parts.rows) == k
        assert np.all(held_out.sum(axis=0) == 1)
        for fold, rows in zip(held_out, parts.rows, strict=True):
            assert {*rows.tolist()} == {*np.flatnonzero(~fold).tolist()}
    sizes = folds(11, 4, key=KEY).held_out.sum(axis=1)
    assert sizes.max() - sizes.min() == 1
    by_value = folds(values=[0.3, 0.1, 0.3]).held_out
    assert by_value.tolist() == [[False, True, False], [True, False, True]]


def test_a_function_made_for_each_member_is_refused():
    inverse = lambda z: 1 / z  # noqa: E731
    Ensemble(lambda key: Conditional(net_of()(key), Function(inverse, 0.1)), 2, key=KEY)

    def make(key):
        return Conditional(net_of()(key), Function(lambda z: 1 / z, 0.1))

    with pytest.raises(SelectionError, match=r"another <function .*Define it once, outside"):
        Ensemble(make, 2, key=KEY)


def test_training_data_are_the_rows_of_each_member_or_a_batch_of_them():
    parts = folds(7, 3, key=KEY)
    whole = parts.training({"x": X})["x"]
    np.testing.assert_array_equal(whole[1], X[parts.rows[1]])
    batch = parts.training(jnp.arange(7), size=2, key=KEY)
    assert batch.shape == (3, 2)
    for member, rows in zip(batch.tolist(), parts.rows.tolist(), strict=True):
        assert {*member} <= {*rows}
    for wrong in ({"size": 2}, {"size": 6, "key": KEY}):
        with pytest.raises(SelectionError, match=r"rows needs a key.* at most the 5 rows"):
            parts.training(X, **wrong)
    for other in (jnp.arange(8), {"x": X, "y": Y[:6]}, 1.0):
        with pytest.raises(SelectionError, match=r"folds are of 7 examples, .*\((8,|6, 2|)\)"):
            parts.training(other)
    with pytest.raises(SelectionError, match="n=None and k=3"):
        folds(k=3, values=[1.0, 2.0])
    with pytest.raises(SelectionError, match="n=7 and k=1"):
        folds(7, 1, key=KEY)
    with pytest.raises(SelectionError, match="two distinct values"):
        folds(values=[1.0, 1.0])


def test_the_weight_of_the_base_multiplies_the_inputs_of_all_members_in_one_product():
    ensemble = Ensemble(net_of(), 5, key=KEY)
    program = jax.make_jaxpr(lambda x: ensemble.each(lambda member: member(x)))(X[0])
    products = [e.invars for e in equations_in(program) if e.primitive is jax.lax.dot_general_p]
    shapes = [operand.aval.shape for operands in products for operand in operands]
    assert [shapes.count(layer.weight.shape) for layer in MODEL.layers] == [1, 1]


def convolutions(size):
    keys = jax.random.split(jax.random.key(0), 2)
    layers = [eqx.nn.Conv2d(3, 3, size, padding=size // 2, key=key) for key in keys]
    return eqx.nn.Sequential([layers[0], eqx.nn.Lambda(jnp.tanh), layers[1]])


@pytest.mark.slow
@pytest.mark.parametrize("form", ["lora", "dora", "lokr", "film", "each", "quantised", "sum"])
def test_convolutions_of_members_have_no_groups_and_compute_as_they_do_alone(form):
    with jax.enable_x64(True):
        x = jax.random.normal(KEY, (3, 2, 3, 5, 4))
        plain = jax.tree.map(
            lambda leaf: leaf.astype(float) if eqx.is_array(leaf) else leaf, convolutions(3)
        )

        def make(key):
            match form:
                case "film" | "each":
                    return Conditional(net_of(model=plain)(key), Powers(0.1), film=form == "film")
                case "quantised":
                    return net_of(model=quantize(plain, "int8", target="0"))(key)
                case "sum":
                    net = Net(plain).freeze()
                    for name in ("lora", "dora"):
                        key, _ = jax.random.split(key)
                        net.add_adapter(name, extract_adapters(net_of(name, plain)(key).module))
                    return net.activate("lora", "dora", train=["lora", "dora"])
            return net_of(form, plain)(key)

        def loss(member, x):
            match form:
                case "film":
                    outputs = jax.vmap(at(member, 0.3))(x)
                case "each":
                    z = jnp.asarray([0.3, 0.5])
                    outputs = jax.vmap(lambda z, x: at(member, z)(x))(z, x)
                case _:
                    outputs = jax.vmap(member)(x)
            return jnp.sum(outputs**2)

        ensemble = at_random(Ensemble(make, 3, key=KEY))
        trained, frozen = ensemble.partition()
        total = lambda trained: Ensemble.loss(loss)(eqx.combine(trained, frozen), x)  # noqa: E731
        program = jax.make_jaxpr(jax.grad(total))(trained)
        convolved = [
            e.params for e in equations_in(program) if e.primitive is jax.lax.conv_general_dilated_p
        ]
        groups = {e["feature_group_count"] * e["batch_group_count"] for e in convolved}
        assert convolved and groups == {1}

        def alone(trained, number):
            return loss(eqx.combine(trained, frozen).member(number), x[number])

        losses = ensemble.each(loss, x)
        gradient = jax.grad(total)(trained)
        for number in range(3):
            value, own = jax.value_and_grad(alone)(trained, number)
            np.testing.assert_allclose(losses[number], value, rtol=1e-12)
            for got, expected in zip(*map(jax.tree.leaves, (gradient, own)), strict=True):
                np.testing.assert_allclose(got[number], expected[number], rtol=1e-9, atol=1e-12)


def test_kernels_of_one_point_run_side_by_side():
    ensemble = Ensemble(net_of(model=convolutions(1)), 3, key=KEY)
    program = jax.make_jaxpr(lambda x: ensemble.each(lambda m: m(x)))(jnp.zeros((3, 4, 4)))
    assert sum("conv_general" in e.primitive.name for e in equations_in(program)) == 2


@pytest.mark.parametrize(
    "wrapper",
    [
        *("lora", "vera-shared"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("dora", "vera", "tied-lora")),
    ],
)
def test_each_member_trains_as_it_does_alone(wrapper):
    make, parts = net_of(wrapper), folds(7, 3, key=KEY)
    batches = parts.training((X, Y))
    ensemble = Ensemble(make, 3, key=KEY)
    optimiser = lora_plus(optax.adam(1e-2), 4.0) if wrapper == "lora" else optax.adam(1e-2)
    together = Trainer(Ensemble.loss(loss), optimiser)
    run = together.fit(*ensemble.partition(), [batches] * 3)
    trained = ensemble.update(run.trainable)
    outputs = trained.each(lambda model: jax.vmap(model)(X))
    losses = []
    alone = Trainer(loss, optimiser)
    for number, key in enumerate(jax.random.split(KEY, 3)):
        net = make(key)
        own_run = alone.fit(*net.partition(), [jax.tree.map(lambda x: x[number], batches)] * 3)  # noqa: B023
        net.update(own_run.trainable)
        np.testing.assert_allclose(outputs[number], jax.vmap(net)(X), rtol=1e-4, atol=1e-5)
        merged = merge_lora(trained.member(number))
        np.testing.assert_allclose(jax.vmap(merged)(X), outputs[number], rtol=1e-4, atol=1e-5)
        losses.append(own_run.losses)
    np.testing.assert_allclose(run.losses, np.sum(losses, axis=0), rtol=1e-5)


def test_the_base_exists_once_and_constants_of_a_member_are_its_own():
    ensemble = Ensemble(net_of("vera-shared"), 3, key=KEY)
    weights = [layer.weight for layer in MODEL.layers]
    shared = jax.tree.leaves(ensemble.shared)
    assert all(any(leaf is weight for leaf in shared) for weight in weights)
    assert all(
        leaf.shape[0] == 3 for leaf in jax.tree.leaves((ensemble.trained, ensemble.constants))
    )
    # VeRA's two matrices, which all layers share, are two arrays here as well.
    assert len({id(leaf) for leaf in jax.tree.leaves(ensemble.constants)}) == 2
    for number, key in enumerate(jax.random.split(KEY, 3)):
        assert eqx.tree_equal(ensemble.member(number), net_of("vera-shared")(key).module)
    assert jax.tree.leaves(Ensemble(net_of("lora"), 3, key=KEY).constants) == []


def test_a_quantised_base():
    coded = quantize(MODEL, "int8")
    ensemble = at_random(Ensemble(net_of(model=coded), 3, key=KEY))
    outputs = ensemble.each(lambda model: jax.vmap(model)(X))
    expected = [jax.vmap(ensemble.member(i))(X) for i in range(3)]
    np.testing.assert_allclose(outputs, jnp.stack(expected), rtol=1e-5, atol=1e-6)
    assert not jax.tree.leaves(ensemble.constants)


def test_conditional_members():
    ensemble = at_random(Ensemble(conditional_of, 3, key=KEY))
    outputs = jax.jit(lambda z: ensemble.each(lambda m: ensemble.call(m, (z, X[0]))))(0.3)
    for number in range(3):
        member = ensemble.member(number)
        assert isinstance(member, Conditional)
        np.testing.assert_allclose(outputs[number], at(member, 0.3)(X[0]), rtol=1e-4, atol=1e-6)
        assert eqx.tree_equal(merge(member, 0.1), MODEL)
    gradient = eqx.filter_grad(Ensemble.loss(lambda member, z: jnp.sum(at(member, z)(X[0]) ** 2)))(
        ensemble, jnp.array([0.1, 0.2, 0.3])
    )
    assert all(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))


def test_a_traced_index_chooses_a_member():
    ensemble = at_random(Ensemble(net_of(), 3, key=KEY))
    outputs = jax.vmap(lambda i: resolve(ensemble.member(i))(X[0]))(jnp.arange(3))
    np.testing.assert_allclose(outputs, ensemble.each(lambda m: m(X[0])), rtol=1e-5, atol=1e-6)


def test_messages_say_what_came_and_what_to_do():
    hint = r"Ensemble\(lambda key: Net\(model, key=key\)"
    with pytest.raises(SelectionError, match=f"a Net: {hint}"):
        Ensemble(net_of()(KEY), key=KEY)
    with pytest.raises(SelectionError, match=f"gives a MLP: {hint}"):
        Ensemble(lambda key: MODEL, key=KEY)
    with pytest.raises(SelectionError, match=f"trainable arrays.*gives a Net: {hint}"):
        Ensemble(lambda key: Net(MODEL).freeze(), key=KEY)
    ranks = iter((1, 2))
    with pytest.raises(SelectionError, match="same arguments for each key"):
        Ensemble(lambda key: Net(MODEL).freeze().lora(next(ranks), 1), 2, key=KEY)
    ensemble = Ensemble(net_of(), 3, key=KEY)
    with pytest.raises(SelectionError, match=r"3 members.*\(7, 3\).*training"):
        Ensemble.loss(loss)(ensemble, (X, Y))
    with pytest.raises(SelectionError, match=r"ensemble\.partition"):
        ensemble.update(ensemble)
    for index in (3, -1, np.int64(7), jnp.array(3)):
        with pytest.raises(SelectionError, match=f"no member {index}: the ensemble has 3"):
            ensemble.member(index)
    assert eqx.tree_equal(ensemble.member(np.int64(2)), ensemble.member(2))
    with pytest.raises(SelectionError, match="at least one member, but `members` is 0"):
        Ensemble(net_of(), 0, key=KEY)


def test_members_that_start_alike_are_told():
    for make in (
        lambda key: Net(MODEL).freeze().lora(rank=2),
        lambda key: Conditional(Net(MODEL).freeze().lora(rank=2), Powers(0.1)),
        net_of("ia3"),
    ):
        with pytest.warns(JnoLoraWarning, match=r"All 3 members start alike.*key=key") as told:
            Ensemble(make, 3, key=KEY)
        assert told[0].filename == __file__
    # Without adapters, and with a key that is traced or only of frozen matrices, nothing is said.
    Ensemble(lambda key: Net(MODEL), 2, key=KEY)
    Ensemble(net_of("vera"), 2, key=KEY)
    starts = jax.jit(lambda key: Ensemble(net_of(), 2, key=key).trained)(KEY)
    assert eqx.tree_equal(starts, Ensemble(net_of(), 2, key=KEY).trained, rtol=1e-5)
