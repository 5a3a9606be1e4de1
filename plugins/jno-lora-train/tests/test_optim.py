"""Optimisers that know adapters: each against its paper's formula, in float64 NumPy."""

import importlib
import sys
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tests.core.toys import ToyLinear, ToyScale

import jno.lora
import jno_lora_train
from jno.lora import (
    LoRAWrapper,
    MissingLibraryError,
    Net,
    SelectionError,
    WrapperError,
    apply_lora,
    lora_trainable_filter,
)
from jno.lora._contract import check_contract

optim = importlib.import_module("jno.lora.optim")
_solve = importlib.import_module("jno_lora_train.optim._preconditioners")._solve


class Product(ToyLinear):
    """A product of `second` and `first`, which may be stacked; `tilt` is not a factor."""

    adapter_fields = ("first", "second", "tilt")
    factor_sides: ClassVar = {"second": "output", "first": "input"}
    base: eqx.Module
    lora_A: None
    lora_B: None
    first: jax.Array
    second: jax.Array
    tilt: jax.Array

    def __init__(self, base, rank, alpha, *, key):
        self.base, self.rank, self.alpha, self.lora_A, self.lora_B = base, rank, alpha, None, None
        keys = jax.random.split(key)
        self.first = jax.random.normal(keys[0], (rank, base.in_features), base.weight.dtype)
        self.second = jax.random.normal(keys[1], (base.out_features, rank), base.weight.dtype)
        self.tilt = jnp.zeros(base.out_features, base.weight.dtype)

    @classmethod
    def stack_ndim(cls, leaf):
        return leaf.weight.ndim - 2

    @classmethod
    def low_rank_scale(cls, rank, alpha):
        return alpha / rank


class FrozenA(ToyLinear):
    """LoRA-FA: only `lora_B` trains. With a multiplier, as the zoo has it."""

    adapter_fields = ("lora_B",)
    multiplier: jax.Array

    def __init__(self, base, rank, alpha, *, key):
        super().__init__(base, rank, alpha, key=key)
        self.lora_A = self.lora_A.astype(base.weight.dtype)
        self.lora_B = self.lora_B.astype(base.weight.dtype)
        self.multiplier = jnp.asarray(0.5, base.weight.dtype)

    @classmethod
    def low_rank_scale(cls, rank, alpha):
        return alpha / rank


class Pair(LoRAWrapper):
    """An adapter that is built of another one, and holds dicts of factors."""

    adapter_fields = ("inner", "lora_A", "lora_B")
    base: eqx.Module
    inner: ToyLinear
    lora_A: dict
    lora_B: dict

    @classmethod
    def applies_to(cls, leaf):
        return isinstance(leaf, eqx.nn.Linear)

    def __init__(self, base, *, key):
        self.base, self.inner = base, ToyLinear(base, 2, 1.0, key=key)
        self.lora_A = {"q": jnp.ones((2, 3)), "v": jnp.full((2, 3), 2.0)}
        self.lora_B = {"v": jnp.ones((4, 2))}

    def __call__(self, x):
        return self.inner(x)

    def merge(self):
        return self.inner.merge()


@pytest.fixture
def linear(getkey):
    return eqx.nn.Linear(5, 4, key=getkey())


def noisy(tree, key):
    """Other values for all arrays of a tree."""
    leaves, treedef = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    pairs = zip(keys, leaves, strict=True)
    return jax.tree.unflatten(treedef, [jax.random.normal(k, a.shape, a.dtype) for k, a in pairs])


def trained(model):
    return eqx.partition(model, lora_trainable_filter(model))[0]


def stepped(optimiser, params, grads, *, state=None):
    with jax.numpy_dtype_promotion("standard"):  # which optax's own code needs
        state = optimiser.init(params) if state is None else state
        return eqx.filter_jit(optimiser.update)(grads, state, params)


def doubled(layer):
    return jax.tree.map(lambda a: a.astype(jnp.float64), layer)


def inverse(gram, damping):
    return np.linalg.inv(np.asarray(gram, np.float64) + damping * np.eye(len(gram)))


# --- sides


def test_sides_are_those_that_the_class_names(linear, getkey):
    model = {"a": ToyLinear(linear, 2, 1.0, key=getkey()), "plain": linear}
    model |= {"own": Product(linear, 2, 1.0, key=getkey()), "pair": Pair(linear, key=getkey())}
    labels = optim.side_labels(model)
    assert jax.tree.structure(labels) == jax.tree.structure(model)
    assert (labels["a"].lora_A, labels["a"].lora_B) == ("input", "output")
    own, pair = labels["own"], labels["pair"]
    assert (own.first, own.second, own.tilt) == ("input", "output", "other")
    assert (pair.inner.lora_A, pair.inner.lora_B) == ("input", "output")
    assert (pair.lora_A, pair.lora_B) == ({"q": "input", "v": "input"}, {"v": "output"})
    assert set(jax.tree.leaves(labels["plain"])) == {"other"} == {own.base.weight}
    assert jax.tree.leaves(optim.side_labels(trained(model)["own"])) == ["input", "output", "other"]
    with pytest.raises(SelectionError, match="side_labels takes a model"):
        optim.side_labels(Net(model))


@pytest.mark.parametrize(
    ("sides", "problem"),
    [
        ({"lora_C": "input"}, "names 'lora_C', which is not a field"),
        ({"rank": "input"}, "names 'rank', which is static"),
    ],
)
def test_wrong_sides_break_the_contract(sides, problem):
    class Wrong(ToyLinear):
        factor_sides = sides

    with pytest.raises(WrapperError, match=problem):
        check_contract(Wrong)
    check_contract(ToyScale)  # has no factor: the default names fields that it lacks
    check_contract(Product)


# --- LoRA+


@pytest.mark.parametrize(
    "made_by",
    [
        lambda rate: optax.sgd(rate, momentum=0.9),
        lambda rate: optax.adamw(rate, weight_decay=0.1),
        lambda rate: optax.lion(optax.linear_schedule(rate, 0.1 * rate, 4)),
    ],
)
def test_lora_plus_is_a_larger_rate_for_b_alone(made_by, linear, getkey):
    model = [ToyLinear(linear, 2, 1.0, key=getkey()), Product(linear, 2, 1.0, key=getkey())]
    params, ratio = trained(model), 8.0
    plus = optim.lora_plus(made_by(0.01), ratio)
    by_rate = {"input": made_by(0.01), "output": made_by(0.01 * ratio), "other": made_by(0.01)}
    apart = optax.multi_transform(by_rate, optim.side_labels)
    states = plus.init(params), apart.init(params)
    for _ in range(3):
        grads = noisy(params, getkey())
        pairs = zip((plus, apart), states, strict=True)
        (ours, mine), (theirs, its) = (stepped(o, params, grads, state=s) for o, s in pairs)
        for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)
        params, states = eqx.apply_updates(params, ours), (mine, its)


def test_lora_plus_with_adam_is_the_papers_step(linear, getkey):
    with jax.enable_x64(True):
        model = Product(doubled(linear), 2, 1.0, key=getkey())
        params = trained(model)
        optimiser = optim.lora_plus(optax.adam(1e-2, eps=1e-8), ratio=16)
        state, m, v = optimiser.init(params), {}, {}
        for t in range(1, 4):
            grads = noisy(params, getkey())
            updates, state = stepped(optimiser, params, grads, state=state)
            for name, rate in {"first": 1e-2, "second": 0.16, "tilt": 1e-2}.items():
                g = np.asarray(getattr(grads, name))
                m[name] = 0.9 * m.get(name, 0) + 0.1 * g
                v[name] = 0.999 * v.get(name, 0) + 0.001 * g**2
                direction = m[name] / (1 - 0.9**t) / (np.sqrt(v[name] / (1 - 0.999**t)) + 1e-8)
                np.testing.assert_allclose(getattr(updates, name), -rate * direction, rtol=1e-10)


def test_the_ratio_may_be_traced_and_keeps_dtypes(linear, getkey):
    model = jax.tree.map(lambda a: a.astype(jnp.bfloat16), ToyLinear(linear, 1, 1.0, key=getkey()))
    params = trained(model)
    grads = jax.tree.map(jnp.ones_like, params)

    @jax.jit
    def step(ratio):
        optimiser = optim.lora_plus(optax.sgd(0.5), ratio)
        return optimiser.update(grads, optimiser.init(params), params)[0]

    updates = step(jnp.asarray(4.0))
    assert jnp.all(updates.lora_A == -0.5) and jnp.all(updates.lora_B == -2)
    assert updates.lora_B.dtype == jnp.bfloat16


def test_lora_plus_refuses_wrong_arguments(linear, getkey, unchecked):
    with pytest.raises(SelectionError, match="`ratio` must be one real number"):
        optim.lora_plus(optax.sgd(0.1), "16")
    for ratio in (0.0, -1.0, float("nan")):
        with pytest.raises(SelectionError, match="`ratio` must be a positive number, but is"):
            optim.lora_plus(optax.sgd(0.1), ratio)
    with pytest.raises(SelectionError, match="found no output factor"):
        optim.lora_plus(optax.sgd(0.1)).init(trained(ToyScale(linear, 1, 1.0, key=getkey())))


# --- rates by path, decay of adapters


def test_labels_by_path_choose_rates(linear, getkey):
    model = eqx.nn.MLP(2, 2, 4, 2, key=getkey())  # is callable
    params = trained(apply_lora(model, 1, key=getkey(), wrapper=ToyLinear))
    labels = optim.path_labels({"first": "^layers/0/", "b": "lora_B$"})
    rates = {"first": 1.0, "b": 2.0, "other": 3.0}
    optimiser = optax.multi_transform({k: optax.sgd(r) for k, r in rates.items()}, labels)
    updates, _ = stepped(optimiser, params, jax.tree.map(jnp.ones_like, params))
    first, second, _ = updates.layers
    assert jnp.all(first.lora_A == -1) and jnp.all(first.lora_B == -1)
    assert jnp.all(second.lora_A == -3) and jnp.all(second.lora_B == -2)
    assert set(jax.tree.leaves(optim.path_labels({}, "all")(params))) == {"all"}


def test_patterns_that_find_nothing_are_errors(linear, unchecked):
    with pytest.raises(SelectionError, match=r"'weigth', is found in the path(.|\n)*- 0/weight"):
        optim.path_labels({"x": "weigth"})([linear])
    with pytest.raises(SelectionError, match="path_labels takes a model"):
        optim.path_labels({})(Net([linear]))


def test_decay_of_adapters_alone_is_a_mask_of_optax(linear, getkey):
    model = [apply_lora(linear, 1, key=getkey(), wrapper=ToyLinear), linear]
    params = Net(model).partition()[0]
    decay = optax.add_decayed_weights(0.5, mask=lora_trainable_filter)
    updates, _ = stepped(decay, params, jax.tree.map(jnp.zeros_like, params))
    np.testing.assert_array_equal(updates[0].lora_A, 0.5 * params[0].lora_A)
    assert not jnp.any(updates[1].weight) and not jnp.any(updates[1].bias)


# --- Riemannian preconditioner


def test_the_riemannian_gradient_is_the_papers(linear, getkey):
    with jax.enable_x64(True):
        model = [Product(doubled(linear), 3, 2.0, key=getkey()), doubled(linear)]
        params = Net(model).partition()[0]
        grads, delta = noisy(params, getkey()), 1e-3
        scaled, _ = stepped(optim.scale_by_riemannian(delta), params, grads)
        A, B, g = params[0].first, params[0].second, grads[0]
        mine = scaled[0]
        np.testing.assert_allclose(mine.first, inverse(B.T @ B, delta) @ g.first, rtol=1e-10)
        np.testing.assert_allclose(mine.second, g.second @ inverse(A @ A.T, delta), rtol=1e-10)
        np.testing.assert_array_equal(mine.tilt, g.tilt)
        np.testing.assert_array_equal(scaled[1].weight, grads[1].weight)


def test_a_riemannian_step_does_not_depend_on_the_factors_of_the_product(getkey):
    """`B M^-1` and `M A` are the same product: so is what a small step makes of it."""
    with jax.enable_x64(True):
        A, B, M, G = (
            jax.random.normal(getkey(), shape) for shape in ((2, 5), (4, 2), (2, 2), (4, 5))
        )
        layer = doubled(eqx.nn.Linear(5, 4, key=getkey()))

        def moved(A, B):
            adapter = Product(layer, 2, 2.0, key=getkey())
            adapter = eqx.tree_at(lambda a: (a.first, a.second), adapter, (A, B))
            params = trained(adapter)
            grads = eqx.tree_at(lambda a: (a.first, a.second), params, (B.T @ G, G @ A.T))
            step, _ = stepped(optim.scale_by_riemannian(1e-12), params, grads)
            return step.second @ A + B @ step.first

        np.testing.assert_allclose(moved(A, B), moved(M @ A, B @ jnp.linalg.inv(M)), rtol=1e-6)


def test_stacks_and_dicts_have_a_preconditioner_for_each_matrix(getkey):
    keys = jax.random.split(getkey(), 3)
    stack = eqx.filter_vmap(lambda key: eqx.nn.Linear(5, 4, key=key))(keys)
    params = trained(apply_lora([stack], 2, key=getkey(), wrapper=Product))
    grads = noisy(params, getkey())
    scaled, _ = stepped(optim.scale_by_riemannian(), params, grads)
    for i in range(3):
        A, g = params[0].first[i], grads[0].second[i]
        expected = np.asarray(g, np.float64) @ inverse(A @ A.T, 1e-6)
        np.testing.assert_allclose(scaled[0].second[i], expected, rtol=1e-3, atol=1e-4)

    pair = trained(Pair(eqx.nn.Linear(5, 4, key=getkey()), key=getkey()))
    grads = noisy(pair, getkey())
    scaled, _ = stepped(optim.scale_by_riemannian(0.1), pair, grads)
    expected = inverse(np.full((2, 2), 4.0), 0.1) @ np.asarray(grads.lora_A["v"])
    np.testing.assert_allclose(scaled.lora_A["v"], expected, rtol=1e-4)
    np.testing.assert_array_equal(scaled.lora_A["q"], grads.lora_A["q"])  # has no partner
    assert not np.array_equal(scaled.inner.lora_B, grads.inner.lora_B)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_rank_deficient_factors_give_finite_gradients_of_the_same_dtype(dtype, linear, getkey):
    params = trained(ToyLinear(linear, 3, 1.0, key=getkey()))  # `lora_B` is zero
    large = eqx.tree_at(lambda a: a.lora_A, params, jnp.full_like(params.lora_A, 1e3))
    params = jax.tree.map(lambda a: a.astype(dtype), large)
    grads = noisy(params, getkey())
    scaled, _ = stepped(optim.scale_by_riemannian(), params, grads)
    for one in jax.tree.leaves(scaled):
        assert one.dtype == dtype and bool(jnp.all(jnp.isfinite(one)))


@pytest.mark.parametrize(("length", "roundings"), [(16, 8), (4096, 64)])
def test_a_factor_of_rank_one_has_a_positive_preconditioner(length, roundings, getkey):
    rows = jax.random.normal(getkey(), (200, 2, 1)) @ jax.random.normal(getkey(), (200, 1, length))
    identity = jnp.broadcast_to(jnp.eye(2), (200, 2, 2))
    inverses = np.asarray(jax.jit(_solve, static_argnums=2)(rows, identity, 1e-8), np.float64)
    grams = np.asarray(rows, np.float64) @ np.asarray(rows, np.float64).swapaxes(1, 2)
    damping = roundings * np.finfo(np.float32).eps * np.trace(grams, axis1=1, axis2=2)
    values = np.linalg.eigvalsh((inverses + inverses.swapaxes(1, 2)) / 2) * damping[:, None]
    assert values.min() > 0 and values.max() < 2


def test_masked_factors_have_no_partner(linear, getkey):
    params = trained([ToyLinear(linear, 2, 1.0, key=getkey()) for _ in range(2)])
    grads = noisy(params, getkey())

    def mask(tree):
        return jax.tree_util.tree_map_with_path(lambda keys, _: keys[0].idx == 0, tree)

    optimiser = optax.masked(optim.scale_by_riemannian(), mask)
    scaled, _ = stepped(optimiser, params, grads)
    assert not np.array_equal(scaled[0].lora_B, grads[0].lora_B)
    np.testing.assert_array_equal(scaled[1].lora_B, grads[1].lora_B)


def test_the_riemannian_preconditioner_refuses_wrong_arguments(linear, getkey, unchecked):
    params = trained(ToyLinear(linear, 2, 1.0, key=getkey()))
    optimiser = optim.scale_by_riemannian()
    with pytest.raises(SelectionError, match=r"optimiser.update\(grads, state, params\)"):
        optimiser.update(params, optimiser.init(params))
    with pytest.raises(SelectionError, match=r"use lora_fa\(model\)"):
        optimiser.init(trained(FrozenA(linear, 2, 1.0, key=getkey())))
    for damping in (0.0, -1, "small", float("nan")):
        with pytest.raises(SelectionError, match="`damping` must be a positive number"):
            optim.scale_by_riemannian(damping)


# --- LoRA-FA


def test_the_correction_of_lora_fa_is_the_papers(linear, getkey):
    with jax.enable_x64(True):
        model = [FrozenA(doubled(linear), 3, 6.0, key=getkey()), doubled(linear)]
        net = Net(model)
        params, delta = net.partition()[0], 1e-3
        grads = noisy(params, getkey())
        corrected, state = stepped(optim.lora_fa(net.module, delta), params, grads)
        A, scale = model[0].lora_A, 0.5 * 6 / 3
        expected = grads[0].lora_B @ inverse(A @ A.T, delta) / scale**2
        np.testing.assert_allclose(corrected[0].lora_B, expected, rtol=1e-10)
        np.testing.assert_array_equal(corrected[1].weight, grads[1].weight)
        assert list(state.preconditioners) == ["0/lora_B"]


def test_the_corrected_step_is_the_nearest_to_that_of_the_whole_matrix(linear, getkey):
    with jax.enable_x64(True):
        adapter = FrozenA(doubled(linear), 3, 6.0, key=getkey())
        G, A, s = jax.random.normal(getkey(), (4, 5)), adapter.lora_A, 1.0
        params = trained(adapter)
        grads = eqx.tree_at(lambda a: a.lora_B, params, s * G @ A.T)
        corrected, _ = stepped(optim.lora_fa(adapter, 1e-12), params, grads)
        nearest = np.linalg.lstsq(s * np.asarray(A.T), np.asarray(G.T), rcond=None)[0].T
        np.testing.assert_allclose(corrected.lora_B, nearest, rtol=1e-8)


def test_lora_fa_trains_in_a_jitted_step_over_stacks(getkey):
    class Stacked(FrozenA):
        @classmethod
        def stack_ndim(cls, leaf):
            return leaf.weight.ndim - 2

    keys = jax.random.split(getkey(), 2)
    stack = eqx.filter_vmap(lambda key: eqx.nn.Linear(5, 4, key=key))(keys)
    model = apply_lora([stack], 2, 4.0, key=getkey(), wrapper=Stacked)
    params = trained(model)
    grads = noisy(params, getkey())
    corrected, _ = stepped(optim.lora_fa(model), params, grads)
    for i in range(2):
        A = model[0].lora_A[i]
        expected = np.asarray(grads[0].lora_B[i]) @ inverse(A @ A.T, 0)
        np.testing.assert_allclose(corrected[0].lora_B[i], expected, rtol=1e-3, atol=1e-4)


def test_lora_fa_refuses_wrong_arguments(linear, getkey):
    class Trained(ToyLinear):
        low_rank_scale = FrozenA.low_rank_scale

    model = [Trained(linear, 2, 1.0, key=getkey())]
    with pytest.raises(SelectionError, match=r"These train:\n  - 0/lora_A\nAdapt with"):
        optim.lora_fa(model).init(trained(model))
    frozen = [FrozenA(linear, 2, 1.0, key=getkey())]
    with pytest.raises(SelectionError, match=r"`B` among the arrays that train\. Adapt with"):
        optim.lora_fa(frozen).init({"elsewhere": trained(frozen)})
    with pytest.raises(SelectionError, match="lora_fa takes a model"):
        optim.lora_fa(Net(frozen))
    # `A` may also be frozen by hand.
    net = Net(model).mask("lora_A$").freeze()
    assert optim.lora_fa(net.module).init(net.partition()[0]).preconditioners


# --- complex arrays


def test_conjugate_turns_complex_updates_alone():
    updates = {"real": jnp.ones(2), "complex": jnp.asarray([1 + 2j], jnp.complex64), "none": None}
    turned, _ = stepped(optim.conjugate(), updates, updates)
    assert eqx.tree_equal(turned, {**updates, "complex": jnp.asarray([1 - 2j], jnp.complex64)})


@pytest.mark.parametrize("optimiser", [optax.adam(0.1), optax.lbfgs()], ids=["adam", "lbfgs"])
def test_behind_conjugate_an_optimiser_descends(optimiser):
    goal = jnp.asarray([1 + 2j, -0.5 + 1j, 2 - 1j], jnp.complex64)
    distance = lambda w: jnp.sum(jnp.abs(w - goal) ** 2)  # noqa: E731
    optimiser = optax.chain(optim.conjugate(), optimiser)
    w = jnp.zeros_like(goal)
    state = optimiser.init(w)

    @jax.jit
    def step(w, state):
        # As a line search of optax takes it, the gradient is JAX's.
        value, gradient = jax.value_and_grad(distance)(w)
        extra = {"value": value, "grad": gradient, "value_fn": distance}
        updates, state = optimiser.update(gradient, state, w, **extra)
        return optax.apply_updates(w, updates), state

    with jax.numpy_dtype_promotion("standard"):  # which optax's own code needs
        for _ in range(100):
            w, state = step(w, state)
    assert distance(w) < 1e-4 * distance(jnp.zeros_like(goal))


def complex_product(getkey):
    draw = lambda *shape: jax.random.normal(getkey(), shape, jnp.complex128)  # noqa: E731
    base = eqx.tree_at(lambda m: m.weight, eqx.nn.Linear(5, 4, key=getkey()), draw(4, 5))
    return Product(base, 3, 3.0, key=getkey()), draw(4, 5)


def test_the_preconditioners_take_the_gram_matrices_of_complex_factors(getkey):
    """For `G`, the direction of ascent by the matrix: `B^H G` by `A`, and `G A^H` by `B`."""
    with jax.enable_x64(True):
        adapter, G = complex_product(getkey)
        A, B = np.asarray(adapter.first), np.asarray(adapter.second)
        of_factors = lambda a: (a.first, a.second)  # noqa: E731
        params = trained(adapter)
        grads = eqx.tree_at(of_factors, params, (B.conj().T @ G, G @ A.conj().T))
        scaled, _ = stepped(optim.scale_by_riemannian(1e-12), params, grads)
        of_A = np.linalg.lstsq(B, np.asarray(G))[0]
        of_B = np.linalg.lstsq(A.T, np.asarray(G).T)[0].T
        np.testing.assert_allclose(scaled.first, of_A, rtol=1e-8)
        np.testing.assert_allclose(scaled.second, of_B, rtol=1e-8)

        only_B = eqx.tree_at(lambda a: a.first, params, None)
        grads = eqx.tree_at(lambda a: a.first, grads, None)
        corrected, _ = stepped(optim.lora_fa(adapter, 1e-12), only_B, grads)
        np.testing.assert_allclose(corrected.second, of_B, rtol=1e-8)


def test_without_optax_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "optax", None)
    doors = ("jno.lora.optim", "jno_lora_train.optim")
    for name in [name for name in sys.modules if name.startswith(doors)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(jno.lora, "optim", raising=False)
    monkeypatch.delattr(jno_lora_train, "optim", raising=False)
    with pytest.raises(MissingLibraryError, match=r'pip install "jno-lora\[optim\]"'):
        importlib.import_module("jno.lora.optim")
