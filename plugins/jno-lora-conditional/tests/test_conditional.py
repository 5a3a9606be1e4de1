"""Building, training, printing and refusing conditionals."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jno.lora import Net, SelectionError
from jno_lora_conditional import (
    Conditional,
    Function,
    Indexed,
    Network,
    Powers,
    at,
    from_sets,
    merge,
)
from jno_lora_conditional.testing import trained_at_random

MODEL = eqx.nn.MLP(3, 2, 6, 2, jnp.tanh, key=jax.random.key(0))
X = jnp.array([0.3, -0.5, 0.8])
POWERS = Powers(source=0.1, unit=0.06)


def adapted(model=MODEL, **arguments):
    return Net(model).freeze().lora(**{"rank": 2, **arguments})


@pytest.fixture(scope="module")
def trained():
    return trained_at_random(Conditional(adapted(), POWERS))


def test_steps_of_optax_leave_the_source_as_it_is():
    conditional = Conditional(adapted(), POWERS)
    trainable, frozen = conditional.partition()
    optimizer = optax.sgd(0.3, momentum=0.9)

    @jax.jit
    def step(trainable, state, z, x):
        def loss(trainable):
            model = at(eqx.combine(trainable, frozen), z)
            return jnp.mean(jax.vmap(model)(x) ** 2)

        value, gradients = jax.value_and_grad(loss)(trainable)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(trainable, updates), state, value

    state, xs = optimizer.init(trainable), jnp.stack([X, -X, 2 * X])
    losses = []
    for _ in range(30):
        trainable, state, value = step(trainable, state, 0.2, xs)
        losses.append(float(value))
    assert losses[-1] < 0.5 * losses[0]
    conditional = conditional.update(trainable)
    assert eqx.tree_equal(merge(conditional, 0.1), MODEL)
    np.testing.assert_array_equal(at(conditional, 0.1)(X), MODEL(X))
    np.testing.assert_array_equal(conditional(0.2, X), at(conditional, 0.2)(X))
    assert not np.array_equal(conditional(0.2, X), MODEL(X))
    with pytest.raises(SelectionError, match="first of the two trees"):
        conditional.update(frozen)
    other = Conditional(adapted(rank=1), POWERS)
    with pytest.raises(SelectionError, match="does not fit this conditional"):
        conditional.update(other.partition()[0])


def test_half_precision():
    dtype = jnp.bfloat16
    layer = jax.tree.map(lambda x: x.astype(dtype), eqx.nn.Linear(3, 4, key=jax.random.key(1)))
    conditional = trained_at_random(Conditional(adapted(layer), POWERS))
    x = X.astype(dtype)
    assert eqx.tree_equal(merge(conditional, 0.1), layer)
    np.testing.assert_array_equal(at(conditional, 0.1)(x), layer(x))
    moved = at(conditional, 0.16)(x)
    assert moved.dtype == dtype
    merged = merge(conditional, 0.16)(x)
    np.testing.assert_allclose(
        moved.astype(float), merged.astype(float), atol=10 * float(jnp.finfo(dtype).eps)
    )


def test_contexts():
    conditional = trained_at_random(Conditional(adapted(), Indexed(3)))
    outputs = jax.vmap(lambda i: at(conditional, i)(X))(jnp.arange(4))
    assert len({tuple(row) for row in outputs[:3].tolist()}) == 3
    assert np.all(np.isnan(outputs[3]))  # there is no such context
    np.testing.assert_array_equal(at(conditional, jnp.zeros(3))(X), MODEL(X))
    with pytest.raises(SelectionError, match=r"takes an integer, or a code of shape \(3,\)"):
        at(conditional, 0.5)
    coded = trained_at_random(Conditional(adapted(), Indexed(3, 2, key=jax.random.key(0))))
    of_context, of_code = at(coded, 1)(X), at(coded, coded.basis.codes[1])(X)
    np.testing.assert_array_equal(of_context, of_code)
    assert not np.allclose(of_context, at(coded, 2)(X))


def test_the_summary_counts_as_the_summary_of_a_net_and_prints(trained):
    net = adapted()
    conditional = Conditional(net, Network(source=0.1, unit=0.06, size=2, key=jax.random.key(1)))
    for tree, summary in ((net.module, net.summary()), (conditional, conditional.summary())):
        leaves = jax.tree.leaves(eqx.filter(tree, eqx.is_inexact_array))
        assert summary.total == sum(leaf.size for leaf in leaves)
        assert summary.percentage == 100 * summary.trainable / summary.total
        assert f"{summary.trainable:,} of {summary.total:,} parameters" in str(summary)
    shown = "Conditional(MLP, 3 layers move by Powers(source=0.1, unit=0.06, degree=1))"
    assert repr(trained) == repr(trained.partition()[0]) == shown
    report = trained.summary()
    assert [row.path for row in report] == ["layers/0", "layers/1", "layers/2"]
    assert (report.rows[0].moving, report.rows[0].shared) == (("lora_B",), ("lora_A",))
    leaves = jax.tree.leaves(trained.partition()[0])
    assert report.trainable == sum(leaf.size for leaf in leaves) == 58
    square = eqx.nn.MLP(4, 4, 4, 2, key=jax.random.key(0))
    grouped = str(Conditional(adapted(square), POWERS).summary())
    assert "layers/[0-2]" in grouped and "x 3" in grouped and "lora_B" in grouped
    one = Conditional(adapted(eqx.nn.Linear(3, 2, key=jax.random.key(0))), Indexed(2))
    assert "1 layer moves by Indexed" in repr(one)


def test_nets_that_are_refused():
    with pytest.raises(SelectionError, match="has no adapters"):
        Conditional(Net(MODEL).freeze(), POWERS)
    with pytest.raises(SelectionError, match="trains the adapters, and nothing else"):
        Conditional(Net(MODEL).lora(rank=2, target="layers/0"), POWERS)
    with pytest.raises(SelectionError, match="cannot become a conditional yet: A mask is pending"):
        Conditional(adapted().mask("lora_B"), POWERS)
    with pytest.raises(SelectionError, match="`moving` names Other, but no layer"):
        Conditional(adapted(), POWERS, moving={"Other": ("lora_B",)})
    named = adapted().add_adapter("a")
    named.add_adapter("b", named.adapter("a"))
    with pytest.raises(SelectionError, match="A sum of several adapters cannot become"):
        Conditional(named.activate("a", "b"), POWERS)
    net = adapted()
    with net.disabled():  # the block does not hide the adapters
        assert len(Conditional(net, POWERS).directions) == 3
    trainable, _ = net.partition()
    net.update(jax.tree.map(lambda x: x + 0.1, trainable))
    for exact in (True, False):
        with pytest.raises(SelectionError, match="have been trained or loaded"):
            Conditional(net, POWERS, exact=exact)
    large = eqx.nn.Linear(40, 30, key=jax.random.key(0))
    with pytest.raises(SelectionError, match="starts with a rounding"):
        Conditional(adapted(large, wrapper="pissa"), POWERS)
    assert Conditional(adapted(large, wrapper="pissa"), POWERS, exact=False).directions


def test_adapters_that_cannot_be_merged():
    attention = eqx.nn.MultiheadAttention(2, 4, key=jax.random.key(0))
    net = adapted(attention, wrapper="prefix-attention")
    (name,) = {type(net.module).__name__}
    with pytest.raises(SelectionError, match=rf"<root>: {name} cannot be merged.*moving=\{{"):
        Conditional(net, POWERS)
    with pytest.raises(SelectionError, match=r"trains prefix_keys, .* and not \('other',\)"):
        Conditional(net, POWERS, moving={name: ("other",)})


class Line(eqx.Module):
    slope: jax.Array
    offset: jax.Array

    def __call__(self, z):
        return self.slope * z + self.offset


def test_a_trained_function_and_other_dtypes_keep_the_source():
    line = Line(jnp.asarray(1.0), jnp.asarray(-0.5))
    conditional = trained_at_random(Conditional(adapted(), Function(line, source=0.3)))
    assert conditional.basis.f.offset != line.offset
    assert eqx.tree_equal(merge(conditional, 0.3), MODEL)
    assert not eqx.tree_equal(merge(conditional, 0.4), MODEL)
    wave = Function(lambda z: jnp.tanh(3 * z), source=0.1)
    np.testing.assert_array_equal(jax.jit(wave)(0.1), [0])
    np.testing.assert_allclose(jax.jacfwd(wave)(0.1), [3 / np.cosh(0.3) ** 2], rtol=1e-6)
    np.testing.assert_array_equal(POWERS(jnp.asarray(0.1, jnp.bfloat16)), [0])
    np.testing.assert_array_equal(jax.jit(Indexed(3))(1), [0, 1, 0])
    assert np.all(np.isnan(jax.jit(Indexed(3))(3)))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Conditional(adapted(), POWERS, moving={"LoRALinear": ("lora_A",)}), "be merged"),
        (lambda: Conditional(adapted(), Function(lambda z: jnp.zeros((2, 2)), 0.1)), r"\(K,\)"),
        (lambda: Indexed(4)(7), "from 0 to 3, but is 7"),
        (lambda: Powers(0.1, log=True)(-0.2), "positive parameters"),
        (lambda: POWERS("a"), "`z` must be a number"),
        (lambda: POWERS(None), "`z` must be a number"),
        (lambda: POWERS([0.1, 0.2]), r"`z` must be one number, .* has the shape \[2\]"),
        (lambda: Powers([0.1, 1.0], unit=[1.0]), "`unit` must be one number, or as many"),
        (lambda: Powers(0.1, degree=0), "`degree` must be a positive integer"),
        (lambda: Powers(-0.1, log=True), "positive parameters, but `source` is -0.1"),
        (lambda: Network(0.1, size=0, key=jax.random.key(0)), "`size` must be a positive integer"),
        (lambda: Indexed(0), "`n` must be a positive integer"),
        (lambda: Indexed(4, 2), "both `size=` and `key=`"),
        (lambda: Conditional(MODEL, POWERS), "takes a `Net`, but got a MLP"),
        (lambda: Indexed(4, 0, key=jax.random.key(0)), "`size` must be a positive integer"),
        (lambda: from_sets(MODEL, []), r"but is \[\]"),
    ],
)
def test_wrong_calls(wrong, message, unchecked):
    with pytest.raises(SelectionError, match=message):
        wrong()
