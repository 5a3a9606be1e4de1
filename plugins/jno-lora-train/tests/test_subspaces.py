"""Subspaces that adapters stay away from: CLoRA's penalty, OSF's projection, against NumPy."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from zoo_cases.models import layers

from jno.lora import SelectionError, apply_lora, lora_trainable_filter, merge_lora
from jno_lora_train.optim import Subspaces, stay_orthogonal

VALUE = 1e-12


def close(actual, expected, bound=VALUE):
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=bound, atol=bound)


def weights(model):
    """The matrices, with an axis for the layers of a stack."""
    by_name = {name: np.asarray(layer.weight) for name, layer in model.items()}
    return {
        name: W.reshape(*W.shape[: 2 if name == "stack" else 1], -1) for name, W in by_name.items()
    }


@pytest.fixture(scope="module")
def plain():
    with jax.enable_x64(True):
        return layers(jnp.float64)


@pytest.fixture(scope="module")
def moved(plain):
    """With LoRA whose factors are not zero."""
    with jax.enable_x64(True):
        adapted = apply_lora(plain, 2, 2.0, key=jax.random.key(1), wrapper="lora")
        trainable, frozen = eqx.partition(adapted, lora_trainable_filter(adapted))
        return eqx.combine(jax.tree.map(lambda x: x + 0.3, trainable), frozen)


@pytest.mark.slow
def test_the_penalty_of_clora_and_its_gradient_are_the_papers(moved):
    with jax.enable_x64(True):
        subspaces = Subspaces.random(moved, 2, key=jax.random.key(2))
        trainable, frozen = eqx.partition(moved, lora_trainable_filter(moved))
        value, gradient = jax.value_and_grad(lambda t: subspaces.penalty(eqx.combine(t, frozen)))(
            trainable
        )
    total = 0.0
    for name, adapter in moved.items():
        V, U = subspaces.inputs[f"{name}/lora_A"], subspaces.outputs[f"{name}/lora_B"]
        V, U = np.asarray(V), np.asarray(U)
        for basis in (V, U):
            gram = basis.swapaxes(-1, -2) @ basis
            close(gram, np.broadcast_to(np.eye(2), gram.shape))
        A, B = np.asarray(adapter.lora_A), np.asarray(adapter.lora_B)
        total += np.sum((A @ V) ** 2) / 2 + np.sum((B.swapaxes(-1, -2) @ U) ** 2) / 2
        close(gradient[name].lora_A, A @ V @ V.swapaxes(-1, -2))
        close(gradient[name].lora_B, U @ U.swapaxes(-1, -2) @ B)
    close(value, total)
    assert total > 0.1


@pytest.mark.slow
def test_the_largest_singular_triplets_are_kept(plain, moved):
    """Whatever is trained, `W'` acts on the kept directions as `W` does."""
    with jax.enable_x64(True):
        projected = Subspaces.of_weights(moved, 2).project(moved)
        after = weights(merge_lora(projected))
    for name, W in weights(plain).items():
        U, S, Vt = np.linalg.svd(W, full_matrices=False)
        U, S, Vt = U[..., :2], S[..., None, :2], Vt[..., :2, :]
        close(after[name] @ Vt.swapaxes(-1, -2), U * S)
        close(U.swapaxes(-1, -2) @ after[name], S.swapaxes(-1, -2) * Vt)
        assert np.max(np.abs(after[name] - W)) > 0.01


@pytest.mark.slow
def test_milora_with_the_projection_is_osf():
    """Steps of gradient descent in the factors of the small triplets, with projected gradients."""
    kept, rate = 2, 0.1
    with jax.enable_x64(True):
        key = jax.random.key(3)
        layer = jax.tree.map(lambda x: x.astype(jnp.float64), eqx.nn.Linear(5, 4, key=key))
        x = jax.random.normal(jax.random.key(4), (7, 5), jnp.float64)
        adapted = apply_lora(layer, 2, 2.0, key=key, wrapper="milora")
        params, frozen = eqx.partition(adapted, lora_trainable_filter(adapted))
        stay = stay_orthogonal(Subspaces.of_weights(adapted, kept))
        optimiser = optax.chain(optax.sgd(rate), stay)
        state = optimiser.init(params)

        @jax.jit
        def step(params, state):
            def loss(p):
                return jnp.sum(jnp.sin(jax.vmap(eqx.combine(p, frozen))(x)))

            updates, state = optimiser.update(jax.grad(loss)(params), state, params)
            return eqx.apply_updates(params, updates), state

        for _ in range(3):
            params, state = step(params, state)
        actual = np.asarray(eqx.combine(params, frozen).merge().weight)
    W, b, x = np.asarray(layer.weight), np.asarray(layer.bias), np.asarray(x)
    U, S, Vt = np.linalg.svd(W, full_matrices=False)
    high = U[:, :kept] * S[:kept] @ Vt[:kept]
    B, A = U[:, kept:] * np.sqrt(S[kept:]), np.sqrt(S[kept:])[:, None] * Vt[kept:]
    outside_outputs = np.eye(4) - U[:, :kept] @ U[:, :kept].T
    outside_inputs = np.eye(5) - Vt[:kept].T @ Vt[:kept]
    for _ in range(3):
        gradient = np.cos(x @ (high + B @ A).T + b).T @ x
        B, A = (
            B - rate * outside_outputs @ gradient @ A.T,
            A - rate * B.T @ gradient @ outside_inputs,
        )
    close(actual, high + B @ A, 1e-10)
    close(actual @ Vt[:kept].T, U[:, :kept] * S[:kept], 1e-10)


@pytest.mark.slow
def test_a_fraction_is_of_each_matrix_and_may_round_to_nothing(moved):
    with jax.enable_x64(True):
        kept = Subspaces.of_weights(moved, 0.5)
    counts = {path: V.shape[-1] for path, V in kept.inputs.items()}
    assert counts == {"linear/lora_A": 2, "convolution/lora_A": 1, "stack/lora_A": 1}
    one_output = apply_lora(eqx.nn.Linear(3, 1, key=jax.random.key(0)), 1, key=jax.random.key(1))
    assert Subspaces.of_weights(one_output).inputs["lora_A"].shape == (3, 0)
    assert eqx.tree_equal(Subspaces.of_weights(one_output).project(one_output), one_output)


@pytest.mark.slow
def test_subspaces_refuse_models_without_their_factors(plain, moved, unchecked):
    for size in (0, 1.5, "half"):
        with pytest.raises(SelectionError, match="`size` must be a number of directions"):
            Subspaces.random(moved, size, key=jax.random.key(0))
    with pytest.raises(SelectionError, match=r"no direction to train:\n.*convolution/lora_A: 3"):
        Subspaces.of_weights(moved, 3)
    with pytest.raises(SelectionError, match="holds no product `B A`"):
        Subspaces.of_weights(plain, 1)
    with jax.enable_x64(True):
        subspaces = Subspaces.of_weights(moved, 1)
    with pytest.raises(SelectionError, match="has none of the factors that the subspaces are for"):
        subspaces.project(plain)
    other = apply_lora(eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(0)), 1, key=jax.random.key(1))
    with pytest.raises(SelectionError, match=r"length 3 at 'layers/0/lora_A', but there is f"):
        Subspaces.of_weights(other, 1).project(
            eqx.tree_at(lambda m: m.layers[0].lora_A, other, jnp.ones((1, 4)))
        )
    shared = apply_lora([plain["linear"]] * 2, 2, key=jax.random.key(1), wrapper="tied-lora")
    with pytest.raises(SelectionError, match="the matrix of a TiedLoRALinear is not known"):
        Subspaces.of_weights(shared, 1)
    frozen = apply_lora(plain, 2, key=jax.random.key(1), wrapper="lora-fa")
    trains = eqx.filter(frozen, lora_trainable_filter(frozen))
    with pytest.raises(SelectionError, match=r"0 factors `A` and 3 factors `B`.*Net\("):
        Subspaces.random(frozen, 1, key=jax.random.key(0)).project(trains)


REFUSED = ("dora", "pissa", "hira")


@pytest.mark.slow
@pytest.mark.parametrize("wrapper", ["adalora", "lora-fa", "milora", *REFUSED])
def test_other_methods_keep_the_directions_or_are_refused(wrapper, plain):
    with jax.enable_x64(True):
        adapted = apply_lora(plain["linear"], 2, 2.0, key=jax.random.key(1), wrapper=wrapper)
        if wrapper in REFUSED:
            with pytest.raises(SelectionError, match="changes the directions that are to stay"):
                Subspaces.of_weights(adapted, 0.5)
            return
        kept = Subspaces.of_weights(adapted, 0.5)
        adapted = kept.project(adapted)
        trains, frozen = eqx.partition(adapted, lora_trainable_filter(adapted))
        step, _ = stay_orthogonal(kept).update(jax.tree.map(jnp.ones_like, trains), kept)
        layer = merge_lora(eqx.combine(eqx.apply_updates(trains, step), frozen))
        change, V = layer.weight - plain["linear"].weight, kept.inputs["lora_A"]
        assert jnp.linalg.norm(change) > 1e-2
        close(change @ V, np.zeros((4, 2)))
