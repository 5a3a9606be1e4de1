"""`declare_raw`: the adapter acts on the raw array, before the function that makes the weight."""

import pickle
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from zoo_cases import perturb

from jno.lora import (
    Net,
    SelectionError,
    WrapperError,
    load_adapters,
    merge_lora,
    save_adapters,
    unwrap_lora,
)
from jno_lora_arrays import DeclaredArray, declare_raw, plain, through


# A library in the style of paramax, which may not be installed. `tests/models` has paramax itself.
class AbstractUnwrappable(eqx.Module):
    pass


class Parameterize(AbstractUnwrappable):
    fn: Callable[..., Any]
    args: tuple[Any, ...]

    def __init__(self, fn, *args):
        self.fn, self.args = fn, args

    def unwrap(self):
        return self.fn(*self.args)


class WeightNormalization(AbstractUnwrappable):
    weight: Any
    scale: Any

    def unwrap(self):
        norms = jnp.linalg.norm(self.weight, axis=-1, keepdims=True)
        return self.scale * self.weight / norms


class NonTrainable(AbstractUnwrappable):
    tree: Any

    def unwrap(self):
        return jax.lax.stop_gradient(self.tree)


def unwrap(tree, *, itself=True):
    """Inner nodes first, as paramax does."""

    def is_node(x):
        return isinstance(x, AbstractUnwrappable) and (itself or x is not tree)

    return jax.tree.map(
        lambda x: unwrap(x, itself=False).unwrap() if is_node(x) else x, tree, is_leaf=is_node
    )


MASK = np.tril(np.ones((4, 5), bool))


def with_zeros(mask, weight):
    return jnp.where(mask, weight, jnp.zeros_like(weight))


def masked(weight):
    return Parameterize(with_zeros, MASK, weight)


class Model(eqx.Module):
    masked: eqx.nn.Linear
    normed: eqx.nn.Linear
    conv: eqx.nn.Conv1d
    frozen: eqx.nn.Linear

    def __init__(self, key):
        k = jr.split(key, 5)
        with_weight = lambda layer, f: eqx.tree_at(lambda m: m.weight, layer, f(layer.weight))  # noqa: E731
        self.masked = with_weight(eqx.nn.Linear(5, 4, key=k[0]), masked)
        scale = Parameterize(jax.nn.softplus, jr.normal(k[1], (3, 1)))
        self.normed = with_weight(
            eqx.nn.Linear(4, 3, key=k[2]),
            lambda w: WeightNormalization(Parameterize(jnp.tanh, w), scale),
        )
        self.conv = with_weight(
            eqx.nn.Conv1d(1, 2, 3, key=k[3]), lambda w: WeightNormalization(w, jnp.ones((2, 1, 1)))
        )
        self.frozen = with_weight(eqx.nn.Linear(2, 2, key=k[4]), NonTrainable)

    def __call__(self, x):
        model = unwrap(self)
        y = model.normed(jax.nn.tanh(model.masked(x)))
        return model.frozen(model.conv(y[None])[:, 0])


@pytest.fixture(scope="module")
def net():
    """Adapters on all raw arrays, away from their start."""
    net = Net(declare_raw(Model(jr.key(0)))).freeze().lora(rank=2, alpha=4.0)
    return net.update(perturb(net.partition()[0], 0.3))


X = jr.normal(jr.key(9), (5,))


def test_the_raw_arrays_are_adapted_and_what_the_library_froze_is_not(net):
    assert [row.path for row in net.summary()] == [
        "masked/weight/raw/0",
        "normed/weight/weight/raw/0",
        "conv/weight/raw/0",
    ]
    plain_model = Model(jr.key(0))
    declared = declare_raw(plain_model)
    assert jnp.array_equal(declared(X), plain_model(X))
    assert eqx.tree_equal(plain(declared), plain_model)
    # One map from (channels, kernel) to the outputs, not a stack of maps.
    assert declared.conv.weight.raw[0].axes == "oii"
    assert eqx.tree_equal(declared.frozen, plain_model.frozen)
    single = declare_raw({"a": masked(jnp.full((4, 5), 2.0))})
    assert eqx.tree_equal(pickle.loads(pickle.dumps(single)), single)


def test_masks_of_floats_are_declared_on_request_alone():
    tril, full = jnp.tril(jnp.ones((4, 5))), jnp.full((4, 5), 2.0)
    for mask in (tril, np.asarray(tril), np.asarray(full)):
        declared = declare_raw({"w": Parameterize(jnp.multiply, mask, full)})
        assert declared["w"].places == (2,)
    declared = declare_raw({"w": Parameterize(jnp.multiply, tril, full)}, {"args/0": "oi"})
    assert declared["w"].places == (1, 2)
    # Nobody knows the values of a traced array, which counts as a weight.
    traced = eqx.filter_eval_shape(declare_raw, {"w": Parameterize(jnp.multiply, tril, full)})
    assert traced["w"].places == (1, 2)


def test_dropout_and_a_second_declaration_are_refused():
    declared = declare_raw([masked(jnp.full((4, 5), 2.0))])
    dropping = Net(declared).lora(rank=2, options={"dropout": 0.5}).module
    with pytest.raises(WrapperError, match=r"A LoRAArray was built with `dropout`"):
        unwrap(dropping)
    assert unwrap(eqx.nn.inference_mode(dropping))[0].shape == (4, 5)
    assert plain(dropping)[0].unwrap().shape == (4, 5)
    for model in (declared, dropping):
        with pytest.raises(SelectionError, match=r"RawNode at '0' is declared already.*`plain`"):
            declare_raw(model)
    adapted = Net([Parameterize(jnp.tanh, eqx.nn.Linear(5, 4, key=jr.key(0)))]).lora(rank=2)
    with pytest.raises(SelectionError, match=r"Parameterize at '0' .*holds an adapter.*merge_lora"):
        declare_raw(adapted.module)


def test_the_law_acts_before_the_function(net):
    weights, original = unwrap(net.module), Model(jr.key(0))

    def moved(raw, box):
        A, B = (np.asarray(x, np.float64) for x in box.low_rank_form()[:2])
        return np.asarray(raw, np.float64) + B @ A

    raw = moved(original.masked.weight.args[1], net.module.masked.weight.raw[0])
    np.testing.assert_allclose(weights.masked.weight, np.where(MASK, raw, 0), atol=1e-6)
    assert not np.any(np.asarray(weights.masked.weight)[~MASK])  # exactly
    normed = original.normed.weight
    raw = np.tanh(moved(normed.weight.args[0], net.module.normed.weight.weight.raw[0]))
    scale = np.log1p(np.exp(np.asarray(normed.scale.args[0], np.float64)))
    expected = scale * raw / np.linalg.norm(raw, axis=-1, keepdims=True)
    np.testing.assert_allclose(weights.normed.weight, expected, atol=1e-6)


def test_merging_gives_the_classes_of_the_library_back(net):
    y = net.module(X)
    assert not np.allclose(y, Model(jr.key(0))(X), atol=1e-2)
    merged = plain(net.module)
    assert jax.tree.structure(merged) == jax.tree.structure(Model(jr.key(0)))
    assert jnp.allclose(merged(X), y, atol=1e-6)
    assert jnp.allclose(merge_lora(net.module)(X), y, atol=1e-6)
    assert eqx.tree_equal(unwrap_lora(net.module), declare_raw(Model(jr.key(0))))
    assert jnp.allclose(net(X), y, atol=1e-6)  # by `through`


def test_a_file_holds_the_factors_and_gradients_are_the_chain_rules(net, tmp_path):
    save_adapters(net.module, tmp_path / "a.safetensors")
    loaded = load_adapters(declare_raw(Model(jr.key(0))), tmp_path / "a.safetensors")
    assert jnp.array_equal(loaded(X), net.module(X))
    trainable, frozen = net.partition()

    @eqx.filter_jit
    def gradients(trainable):
        def of(call):
            return jax.grad(lambda t: jnp.sum(call(eqx.combine(t, frozen)) ** 2))(trainable)

        merged = of(lambda m: plain(m)(X))
        return of(lambda m: m(X)), merged, of(lambda m: through(Model.__call__)(m, X))

    for direct, merged, traced in zip(*map(jax.tree.leaves, gradients(trainable)), strict=True):
        assert jnp.any(direct != 0)
        np.testing.assert_allclose(direct, merged, atol=1e-5)
        np.testing.assert_allclose(direct, traced, atol=1e-5)


def test_stacks_are_adapted_slice_by_slice():
    stack = eqx.filter_vmap(lambda key: masked(jr.normal(key, (4, 5))))(jr.split(jr.key(0), 3))
    declared = declare_raw({"weight": stack})
    assert isinstance(declared["weight"].raw[0], DeclaredArray)
    assert declared["weight"].raw[0].axes == "soi"
    adapted = Net(declared).lora(rank=2).module
    assert adapted["weight"].raw[0].lora_A.shape == (3, 2, 5)
    assert jnp.array_equal(unwrap(adapted)["weight"], unwrap({"weight": stack})["weight"])


def test_letters_and_errors():
    with pytest.raises(SelectionError, match=r"a Parameterize computes its weight.*declare_raw"):
        Net([Model(jr.key(0)).masked]).lora(rank=2)
    with pytest.raises(SelectionError, match=r"raw arrays are declared: select .*/raw/0"):
        Net(declare_raw([Model(jr.key(0)).normed])).lora(rank=2, target="^0$")
    weights = {
        "w": Parameterize(jnp.exp, jnp.zeros((3, 2)), jnp.zeros((2, 3, 4))),
        "v": jnp.ones(2),
    }
    declared = declare_raw(weights, {"args/0": "io"})
    assert [box.axes for box in declared["w"].raw] == ["io", "soi"]
    with pytest.raises(SelectionError, match=r"(?s)'arg/2' matches no array.*w/args/1"):
        declare_raw(weights, {"arg/2": "io"})
    with pytest.raises(SelectionError, match=r"w/args/0.*float32\[3, 2\].*'soi'.* of 3 axes"):
        declare_raw(weights, {"args/0": "soi"})
    with pytest.raises(SelectionError, match=r"(?s)No matrix of this model.*w/args/0.*`declare`"):
        declare_raw({"w": Parameterize(jnp.exp, jnp.zeros((3, 1)), jnp.zeros(3))})
