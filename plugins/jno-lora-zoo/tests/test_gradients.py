"""Which arrays train, and that the gradients are those of the law."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from zoo_cases import (
    adapters,
    assert_close,
    build,
    case,
    each,
    equal_leaves,
    fields_of,
    law_of,
    perturb,
)

from jno.lora import lora_trainable_filter


def loss(trainable, frozen, inputs):
    wrapper = eqx.combine(trainable, frozen)
    return jnp.sum(jnp.sin(wrapper(*inputs)))


def merged_loss(trainable, frozen, inputs):
    wrapper = eqx.combine(trainable, frozen)
    return jnp.sum(jnp.sin(wrapper.merge()(*inputs)))


def split(wrapper):
    return eqx.partition(wrapper, lora_trainable_filter(wrapper))


def step(tree, gradients, rate=0.1):
    return jax.tree.map(lambda x, g: x - rate * g, tree, gradients)


LAYERS = {"linear": ("plain", "subclass"), "conv": ("plain", "groups_straddled")}


@adapters(**LAYERS)
def test_exactly_the_adapter_fields_train(adapter, base):
    trainable, frozen = split(build(adapter, base))
    names = [jax.tree_util.keystr(p, simple=True) for p, _ in jax.tree.leaves_with_path(trainable)]
    assert sorted(names) == sorted(adapter.cls.adapter_fields)
    assert equal_leaves(frozen.base, build(adapter, base).base)


@adapters(**LAYERS)
def test_every_trained_field_gets_a_gradient_after_one_step(adapter, base):
    trainable, frozen = split(build(adapter, base))
    inputs = base.arguments()
    first = jax.grad(loss)(trainable, frozen, inputs)
    second = jax.grad(loss)(step(trainable, first), frozen, inputs)
    assert any(np.any(np.asarray(g) != 0) for g in jax.tree.leaves(first))
    for name in adapter.cls.adapter_fields:
        gradient = np.asarray(getattr(second, name))
        assert np.isfinite(gradient).all()
        assert np.any(gradient != 0), name


@each()
def test_training_moves_the_adapter_and_nothing_else(adapter):
    base = case(adapter.kind, "plain")
    start = build(adapter, base)
    optimiser = optax.sgd(0.02, momentum=0.9)
    trainable, frozen = split(start)
    state = optimiser.init(trainable)
    losses = []
    for _ in range(3):
        value, gradients = jax.value_and_grad(loss)(trainable, frozen, base.arguments())
        updates, state = optimiser.update(gradients, state)
        trainable = optax.apply_updates(trainable, updates)
        losses.append(float(value))
    trained = eqx.combine(trainable, frozen)
    assert losses[2] < losses[0]
    assert equal_leaves(split(trained)[1], split(start)[1])
    for name in adapter.cls.adapter_fields:
        assert np.any(np.asarray(getattr(trained, name)) != np.asarray(getattr(start, name)))


@adapters(linear=("plain", "scalar_output"), conv=("plain", "groups", "groups_straddled"))
def test_the_merged_layer_has_the_gradients_of_the_wrapped_one(adapter, base):
    trainable, frozen = split(perturb(build(adapter, base)))
    inputs = base.arguments()
    wrapped = jax.grad(loss)(trainable, frozen, inputs)
    merged = jax.grad(merged_loss)(trainable, frozen, inputs)
    largest = max(float(jnp.max(jnp.abs(g))) for g in jax.tree.leaves(merged))
    for one, other in zip(jax.tree.leaves(wrapped), jax.tree.leaves(merged), strict=True):
        assert_close(one, other, 2e-5, scale=largest)


@each()
def test_gradients_are_the_derivatives_of_the_law(adapter):
    base = case(adapter.kind, "plain")
    wrapper = perturb(build(adapter, base))
    rng = np.random.default_rng(2)
    cotangent = rng.normal(size=base.matrix().shape)
    weights = jnp.asarray(cotangent.reshape(base.layer.weight.shape), jnp.float32)
    trainable, frozen = split(wrapper)
    gradients = jax.grad(lambda t: jnp.sum(weights * eqx.combine(t, frozen).merge().weight))(
        trainable
    )

    names = adapter.cls.adapter_fields
    at = vars(fields_of(wrapper))
    # DoRA takes the row norm for constant.
    W, V_scale = base.matrix(), 3.0 / 2
    if adapter.method == "DoRA":
        at["norm"] = np.linalg.norm(W + V_scale * at["lora_B"] @ at["lora_A"], axis=1)
    for name in names:
        direction = rng.normal(size=at[name].shape)

        def along(h, name=name, direction=direction):
            moved = {**at, name: at[name] + h * direction}
            return np.sum(cotangent * law_of(adapter, wrapper, base, **moved))

        expected = (along(1e-5) - along(-1e-5)) / 2e-5
        gradient = np.asarray(getattr(gradients, name)).astype(np.float64)
        scale = np.linalg.norm(gradient) * np.linalg.norm(direction)
        assert_close(np.sum(gradient * direction), expected, 1e-5, scale=scale)


@each()
def test_layers_one_after_the_other_have_the_gradients_of_the_law(adapter):
    """The input of the second varies with what trains, which not every version of JAX survives."""
    keys = jax.random.split(jax.random.key(0), 3)
    if adapter.kind == "Linear":
        make, shape = lambda key: eqx.nn.Linear(4, 4, key=key), (4,)
    else:
        make, shape = lambda key: eqx.nn.Conv1d(4, 4, 3, padding=1, key=key), (4, 6)
    x = jax.random.normal(keys[2], shape)
    layers = [perturb(build(adapter, make(key), rank=2), seed=1) for key in keys[:2]]
    trainable, frozen = eqx.partition(layers, [lora_trainable_filter(one) for one in layers])

    def total(trainable, as_used):
        first, second = map(as_used, eqx.combine(trainable, frozen))
        return jnp.sum(jnp.sin(second(jnp.tanh(first(x)))))

    gradient = jax.jit(jax.grad(total), static_argnums=1)
    found, expected = gradient(trainable, lambda one: one), gradient(trainable, lambda o: o.merge())
    for ours, law in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert_close(ours, law, 1e-5)
