"""Optimisers that know adapters, on complex factors, against NumPy."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jno.lora import LoRAWrapper, lora_trainable_filter, merge_lora
from jno.lora.optim import Subspaces, conjugate, lora_fa, scale_by_riemannian, stay_orthogonal


def close(actual, expected, bound=1e-12):
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=bound, atol=bound)


class ComplexLinear(eqx.Module):
    weight: jax.Array


class ComplexLoRA(LoRAWrapper):
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

    def low_rank_update(self):
        return self.lora_A, self.lora_B

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
    turned, _ = conjugate().update(updates, conjugate().init(updates))
    assert eqx.tree_equal(turned, {**updates, "complex": jnp.asarray([1 - 2j], jnp.complex64)})


def test_behind_conjugate_an_optimiser_descends():
    goal = jnp.asarray([1 + 2j, -0.5 + 1j, 2 - 1j], jnp.complex64)
    distance = lambda w: jnp.sum(jnp.abs(w - goal) ** 2)  # noqa: E731
    optimiser = optax.chain(conjugate(), optax.lbfgs())
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
        riemannian = scale_by_riemannian(1e-12)
        scaled, _ = riemannian.update(grads, riemannian.init(params), params)
        of_A = np.linalg.lstsq(B, np.asarray(G))[0]
        of_B = np.linalg.lstsq(A.T, np.asarray(G).T)[0].T
        close(scaled.lora_A, of_A, 1e-8)
        close(scaled.lora_B, of_B, 1e-8)

        only_B = eqx.tree_at(lambda a: a.lora_A, params, None)
        grads = eqx.tree_at(lambda a: a.lora_A, grads, None)
        correction = lora_fa(adapter, 1e-12)
        corrected, _ = correction.update(grads, correction.init(only_B))
        close(corrected.lora_B, of_B, 1e-8)


def test_complex_factors_stay_away_from_complex_directions():
    with jax.enable_x64(True):
        model = complex_lora(6, 5, 2)
        W, A, B = (np.asarray(x) for x in (model.base.weight, model.lora_A, model.lora_B))
        drawn = Subspaces.random(model, 2, key=jax.random.key(0))
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

        kept = Subspaces.of_weights(model, 2)
        left, values, right = np.linalg.svd(W)
        V, U = right[:2].conj().T, left[:, :2]
        outside = kept.project(model)
        close(outside.lora_A, A - A @ V @ V.conj().T)
        close(outside.lora_B, B - U @ U.conj().T @ B)
        params, frozen = eqx.partition(outside, lora_trainable_filter(model))
        gradient = jax.tree.map(lambda x: jnp.ones_like(x) + 0.5j, params)
        updates, _ = stay_orthogonal(kept).update(gradient, kept)
        moved = eqx.combine(eqx.apply_updates(params, updates), frozen)
        weight = np.asarray(merge_lora(moved).weight)
        assert np.linalg.norm(weight - W) > 0.1
        close(weight @ V, U * values[:2], 1e-10)
        close(U.conj().T @ weight, values[:2, None] * V.conj().T, 1e-10)
