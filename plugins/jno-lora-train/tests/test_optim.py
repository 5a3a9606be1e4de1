"""Optimisers that know adapters, against the formulas of their papers in float64 NumPy."""

import importlib

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from zoo_cases.models import layers

from jno.lora import (
    LowRankForm,
    MatrixAdapter,
    Net,
    SelectionError,
    apply_lora,
    lora_trainable_filter,
    merge_lora,
)

optim = importlib.import_module("jno_lora_train.optim")
_solve = importlib.import_module("jno_lora_train.optim._preconditioners")._solve


LINEAR = eqx.nn.Linear(5, 4, key=jax.random.key(0))


def noisy(tree, key):
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
    return np.linalg.inv(np.asarray(gram, np.float64) + damping * np.eye(gram.shape[-1]))


def lora(variant="lora", layer=LINEAR, rank=2, **options):
    """A list with an adapted layer, whose factors are not zero."""
    model = apply_lora([layer], rank, 6.0, key=jax.random.key(1), wrapper=variant, options=options)
    params, frozen = eqx.partition(model, lora_trainable_filter(model))
    return eqx.combine(noisy(params, jax.random.key(2)), frozen)


def test_sides_are_those_that_the_class_names():
    attention = eqx.nn.MultiheadAttention(2, 6, key=jax.random.key(0))
    model = {"dora": lora("dora"), "plain": LINEAR, "units": lora("lora-attention", attention)}
    labels = optim.side_labels(model)
    assert jax.tree.structure(labels) == jax.tree.structure(model)
    (dora,), (units,) = labels["dora"], labels["units"]
    assert (dora.lora_A, dora.lora_B, dora.magnitude) == ("input", "output", "other")
    assert units.lora_A == {"q": "input", "v": "input"}
    assert units.lora_B == {"q": "output", "v": "output"}
    assert set(jax.tree.leaves(labels["plain"])) == {"other"} == {dora.base.weight}
    trained_labels = jax.tree.leaves(optim.side_labels(trained(model["dora"])))
    assert sorted(trained_labels) == ["input", "other", "output"]


def test_labels_by_path_choose_rates(getkey):
    model = eqx.nn.MLP(2, 2, 4, 2, key=getkey())  # is callable
    params = trained(apply_lora(model, 1, key=getkey(), wrapper="lora"))
    labels = optim.path_labels({"first": "^layers/0/", "b": "lora_B$"})
    rates = {"first": 1.0, "b": 2.0, "other": 3.0}
    optimiser = optax.multi_transform({k: optax.sgd(r) for k, r in rates.items()}, labels)
    updates, _ = stepped(optimiser, params, jax.tree.map(jnp.ones_like, params))
    first, second, _ = updates.layers
    assert jnp.all(first.lora_A == -1) and jnp.all(first.lora_B == -1)
    assert jnp.all(second.lora_A == -3) and jnp.all(second.lora_B == -2)
    assert set(jax.tree.leaves(optim.path_labels({}, "all")(params))) == {"all"}


def without_params():
    optimiser, params = optim.scale_by_riemannian(), trained(lora())
    optimiser.update(params, optimiser.init(params))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: optim.lora_fa(Net([LINEAR])), "lora_fa takes a model"),
        (
            lambda: optim.path_labels({"x": "weigth"})([LINEAR]),
            "(?s)'weigth', is found in the path.*- 0/weight",
        ),
        (lambda: optim.lora_plus(optax.sgd(0.1), 0.0), "`ratio` must be a positive number, but is"),
        (
            lambda: optim.lora_plus(optax.sgd(0.1)).init(trained(lora("ia3"))),
            "found no output factor",
        ),
        (without_params, r"optimiser.update\(grads, state, params\)"),
        (
            lambda: optim.scale_by_riemannian().init(trained(lora("lora-fa"))),
            r"use lora_fa\(model\)",
        ),
        (lambda: optim.scale_by_riemannian(0.0), "`damping` must be a positive number"),
        (
            lambda: optim.lora_fa(lora()).init(trained(lora())),
            r"These train:\n  - 0/lora_A\nAdapt with",
        ),
        (
            lambda: optim.lora_fa(lora("lora-fa")).init({"elsewhere": trained(lora("lora-fa"))}),
            r"`B` among the arrays that train\. Adapt with",
        ),
    ],
)
def test_wrong_arguments_are_refused(call, message, unchecked):
    with pytest.raises(SelectionError, match=message):
        call()


# --- LoRA+


@pytest.mark.parametrize(
    "made_by",
    [
        lambda rate: optax.adamw(rate, weight_decay=0.1),
        lambda rate: optax.lion(optax.linear_schedule(rate, 0.1 * rate, 4)),
    ],
)
def test_lora_plus_is_a_larger_rate_for_b_alone(made_by, getkey):
    params, ratio = trained(lora("dora")), 8.0
    plus = optim.lora_plus(made_by(0.01), ratio)
    by_rate = {"input": made_by(0.01), "output": made_by(0.01 * ratio), "other": made_by(0.01)}
    apart = optax.multi_transform(by_rate, optim.side_labels)
    states = plus.init(params), apart.init(params)
    for _ in range(3):
        grads = noisy(params, getkey())
        pairs = zip((plus, apart), states, strict=True)
        updates, states = zip(*(stepped(o, params, grads, state=s) for o, s in pairs), strict=True)
        for ours, theirs in zip(*map(jax.tree.leaves, updates), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)
        params = eqx.apply_updates(params, updates[0])


def test_the_ratio_may_be_traced_and_keeps_dtypes():
    params = jax.tree.map(lambda a: a.astype(jnp.bfloat16), trained(lora()))
    grads = jax.tree.map(jnp.ones_like, params)

    @jax.jit
    def step(ratio):
        optimiser = optim.lora_plus(optax.sgd(0.5), ratio)
        return optimiser.update(grads, optimiser.init(params), params)[0]

    (updates,) = step(jnp.asarray(4.0))
    assert jnp.all(updates.lora_A == -0.5) and jnp.all(updates.lora_B == -2)
    assert updates.lora_B.dtype == jnp.bfloat16


# --- preconditioners


@pytest.mark.parametrize("variant", ["lora-fa", "dora"])
def test_the_gradients_of_every_kind_of_layer_are_the_papers(variant, getkey):
    options, delta = {"multiplier": 2.0} if variant == "lora-fa" else {}, 1e-2
    with jax.enable_x64(True):
        model = [*lora(variant, layers(jnp.float64), **options), doubled(LINEAR)]
        params = [trained(model[0]), model[1]]
        grads = noisy(params, getkey())
        make = optim.lora_fa(model, delta) if options else optim.scale_by_riemannian(delta)
        (scaled, plain), _ = stepped(make, params, grads)
    np.testing.assert_array_equal(plain.weight, grads[1].weight)
    scale = 2.0 * 6 / 2 if options else 1.0
    for name, adapter in model[0].items():
        mine, g = scaled[name], grads[0][name]
        A, B = np.asarray(adapter.lora_A), np.asarray(adapter.lora_B)
        of_A = inverse(A @ A.swapaxes(-1, -2), delta) / scale**2
        np.testing.assert_allclose(mine.lora_B, np.asarray(g.lora_B) @ of_A, rtol=1e-10)
        if not options:
            of_B = inverse(B.swapaxes(-1, -2) @ B, delta)
            np.testing.assert_allclose(mine.lora_A, of_B @ np.asarray(g.lora_A), rtol=1e-10)
            np.testing.assert_array_equal(mine.magnitude, g.magnitude)


def test_dicts_have_a_preconditioner_for_each_matrix_with_a_partner(getkey):
    attention = eqx.nn.MultiheadAttention(2, 6, key=jax.random.key(0))
    (params,) = trained(lora("lora-attention", attention))
    params = eqx.tree_at(lambda m: m.lora_B["q"], params, None)
    grads = noisy(params, getkey())
    scaled, _ = stepped(optim.scale_by_riemannian(0.1), params, grads)
    B = params.lora_B["v"]
    expected = inverse(B.T @ B, 0.1) @ np.asarray(grads.lora_A["v"])
    np.testing.assert_allclose(scaled.lora_A["v"], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(scaled.lora_A["q"], grads.lora_A["q"])  # has no partner


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_rank_deficient_factors_give_finite_gradients_of_the_same_dtype(dtype, getkey):
    (params,) = trained(lora())
    values = jnp.full_like(params.lora_A, 1e3), jnp.zeros_like(params.lora_B)
    params = eqx.tree_at(lambda a: (a.lora_A, a.lora_B), params, values)
    params = jax.tree.map(lambda a: a.astype(dtype), params)
    scaled, _ = stepped(optim.scale_by_riemannian(), params, noisy(params, getkey()))
    for leaf in jax.tree.leaves(scaled):
        assert leaf.dtype == dtype and bool(jnp.all(jnp.isfinite(leaf)))


@pytest.mark.parametrize(("length", "roundings"), [(16, 8), (4096, 64)])
def test_a_factor_of_rank_one_has_a_positive_preconditioner(length, roundings, getkey):
    rows = jax.random.normal(getkey(), (200, 2, 1)) @ jax.random.normal(getkey(), (200, 1, length))
    identity = jnp.broadcast_to(jnp.eye(2), (200, 2, 2))
    inverses = np.asarray(jax.jit(_solve, static_argnums=2)(rows, identity, 1e-8), np.float64)
    grams = np.asarray(rows, np.float64) @ np.asarray(rows, np.float64).swapaxes(1, 2)
    damping = roundings * np.finfo(np.float32).eps * np.trace(grams, axis1=1, axis2=2)
    values = np.linalg.eigvalsh((inverses + inverses.swapaxes(1, 2)) / 2) * damping[:, None]
    assert values.min() > 0 and values.max() < 2


def test_lora_fa_corrects_a_factor_whose_partner_was_frozen_by_hand():
    net = Net([LINEAR]).lora(2).mask("lora_A$").freeze()
    assert optim.lora_fa(net.module).init(net.partition()[0]).preconditioners


@pytest.mark.parametrize(("alpha", "multiplier"), [(0.0, None), (3.0, 0.0)])
def test_lora_fa_takes_no_step_if_the_update_does_not_count(alpha, multiplier, getkey):
    options = {} if multiplier is None else {"multiplier": multiplier}
    model = apply_lora(LINEAR, 2, alpha, key=getkey(), wrapper="lora-fa", options=options)
    params = trained(model)
    corrected, _ = stepped(optim.lora_fa(model), params, jax.tree.map(jnp.ones_like, params))
    assert jnp.all(corrected.lora_B == 0)


# --- complex factors


def close(actual, expected, bound=1e-12):
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=bound, atol=bound)


class ComplexLinear(eqx.Module):
    weight: jax.Array


class ComplexLoRA(MatrixAdapter):
    """LoRA with complex factors and the scale 1, as an adapter of a third party may have."""

    adapter_fields = ("lora_A", "lora_B")
    base: ComplexLinear
    lora_A: jax.Array
    lora_B: jax.Array
    rank: int = eqx.field(static=True, default=1)
    alpha: float = eqx.field(static=True, default=1.0)

    @classmethod
    def applies_to(cls, leaf):
        return isinstance(leaf, ComplexLinear)

    @classmethod
    def matrix(cls, layer):
        return layer.weight

    @classmethod
    def low_rank_scale(cls, rank, alpha):
        return 1.0

    def low_rank_form(self):
        return LowRankForm(self.lora_A, self.lora_B)

    def merge(self):
        return ComplexLinear(self.base.weight + self.lora_B @ self.lora_A)

    def __call__(self, x):
        return self.merge().weight @ x


def complex_lora(inputs, outputs, rank):
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = (outputs, inputs), (rank, inputs), (outputs, rank)
    W, A, B = map(lambda *x: jax.random.normal(*x, jnp.complex128), keys, shapes)
    return ComplexLoRA(ComplexLinear(W), A, B)


def test_conjugate_turns_complex_updates_alone():
    updates = {"real": jnp.ones(2), "complex": jnp.asarray([1 + 2j], jnp.complex64), "none": None}
    turned, _ = optim.conjugate().update(updates, optim.conjugate().init(updates))
    assert eqx.tree_equal(turned, {**updates, "complex": jnp.asarray([1 - 2j], jnp.complex64)})


def test_behind_conjugate_an_optimiser_descends():
    goal = jnp.asarray([1 + 2j, -0.5 + 1j, 2 - 1j], jnp.complex64)
    distance = lambda w: jnp.sum(jnp.abs(w - goal) ** 2)  # noqa: E731
    optimiser = optax.chain(optim.conjugate(), optax.lbfgs())
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


def test_the_preconditioners_take_the_gram_matrices_of_complex_factors(getkey):
    """For `G`, the direction of ascent by the matrix: `B^H G` by `A`, and `G A^H` by `B`."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):  # as optimisers run
        adapter = complex_lora(5, 4, 3)
        G = jax.random.normal(getkey(), (4, 5), jnp.complex128)
        A, B = np.asarray(adapter.lora_A), np.asarray(adapter.lora_B)
        of_factors = lambda a: (a.lora_A, a.lora_B)  # noqa: E731
        params = eqx.filter(adapter, lora_trainable_filter(adapter))
        grads = eqx.tree_at(of_factors, params, (B.conj().T @ G, G @ A.conj().T))
        riemannian = optim.scale_by_riemannian(1e-12)
        scaled, _ = riemannian.update(grads, riemannian.init(params), params)
        of_A = np.linalg.lstsq(B, np.asarray(G))[0]
        of_B = np.linalg.lstsq(A.T, np.asarray(G).T)[0].T
        close(scaled.lora_A, of_A, 1e-8)
        close(scaled.lora_B, of_B, 1e-8)

        only_B = eqx.tree_at(lambda a: a.lora_A, params, None)
        grads = eqx.tree_at(lambda a: a.lora_A, grads, None)
        correction = optim.lora_fa(adapter, 1e-12)
        corrected, _ = correction.update(grads, correction.init(only_B))
        close(corrected.lora_B, of_B, 1e-8)


def test_complex_factors_stay_away_from_complex_directions():
    with jax.enable_x64(True):
        model = complex_lora(6, 5, 2)
        W, A, B = (np.asarray(x) for x in (model.base.weight, model.lora_A, model.lora_B))
        drawn = optim.Subspaces.random(model, 2, key=jax.random.key(0))
        V, U = (np.asarray(next(iter(side.values()))) for side in (drawn.inputs, drawn.outputs))
        assert V.dtype == U.dtype == np.complex128
        close(V.conj().T @ V, np.eye(2))
        penalty = drawn.penalty(model)
        assert penalty.dtype == np.float64
        close(penalty, (np.sum(np.abs(A @ V) ** 2) + np.sum(np.abs(U.conj().T @ B) ** 2)) / 2)

        def along(step):
            """The penalty with `step` added to the first column of `A`."""
            A = model.lora_A.at[:, 0].add(step)
            return drawn.penalty(eqx.tree_at(lambda m: m.lora_A, model, A))

        close(jax.grad(along)(0.0), np.sum((A @ V).conj() * V[0]).real, 1e-10)

        kept = optim.Subspaces.of_weights(model, 2)
        left, values, right = np.linalg.svd(W)
        V, U = right[:2].conj().T, left[:, :2]
        outside = kept.project(model)
        close(outside.lora_A, A - A @ V @ V.conj().T)
        close(outside.lora_B, B - U @ U.conj().T @ B)
        params, frozen = eqx.partition(outside, lora_trainable_filter(model))
        gradient = jax.tree.map(lambda x: jnp.ones_like(x) + 0.5j, params)
        updates, _ = optim.stay_orthogonal(kept).update(gradient, kept)
        moved = eqx.combine(eqx.apply_updates(params, updates), frozen)
        weight = np.asarray(merge_lora(moved).weight)
        assert np.linalg.norm(weight - W) > 0.1
        close(weight @ V, U * values[:2], 1e-10)
        close(U.conj().T @ weight, values[:2, None] * V.conj().T, 1e-10)
