"""A step on the mesh is the step of one device, and leaves everything where it was."""

import functools
import itertools

import equinox as eqx
import jax
import optax
import pytest
from tests.pairs import ALL

from .layouts import (
    LAYOUTS,
    Small,
    Transformer,
    adapt,
    adapted,
    adapted_transformer,
    assert_close,
    assert_same_sharding,
    base,
    compiled_step,
    copied,
    gathered,
    mesh_of,
    perturbed,
    put_batch,
    wrappers_of,
)

TRAINED = ["LoRA", "DoRA", "VeRA", "OFT", "PiSSA", "LoKr", "IA3"]
PAIRS = [("LoRA", "tensor"), ("DoRA", "2d"), ("PiSSA", "tensor"), ("LoKr", "2d")]


def train(model, data, optimiser, steps):
    """Some donated steps, whose arrays must be gone: what trains, the losses, the program."""
    step, trainable, state, frozen = compiled_step(copied(model), optimiser, data)
    losses = []
    for number in range(steps):
        before, before_state = trainable, state
        trainable, state, value = step(trainable, state, frozen, *data)
        losses.append(value)
        assert_same_sharding(trainable, before, f"step {number}: ")
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
        assert_same_sharding(state, before_state)
    return trainable, losses, step.as_text()


def on(layout, data):
    return put_batch(data, LAYOUTS[layout], mesh_of(layout))


@functools.cache
def alone(method):
    """The results of `train` on one device."""
    model = perturbed(adapted(method, None))
    return train(model, Small.data(), optax.sgd(0.1, momentum=0.9), 2)


@pytest.mark.parametrize(
    ("method", "layout"),
    [
        *(itertools.product(TRAINED, ["tensor", "2d"]) if ALL else PAIRS),
        *(("LoRA", "data"), ("LoRA", "fsdp")),
    ],
)
def test_steps_equal_those_of_one_device(method, layout):
    model = perturbed(adapted(method, layout))
    optimiser = optax.sgd(0.1, momentum=0.9)
    trained, losses, program = train(model, on(layout, Small.data()), optimiser, 2)
    expected, expected_losses, _ = alone(method)
    assert_close(losses, expected_losses, rtol=1e-5)
    assert_close(trained, expected, rtol=1e-5, atol=1e-6)
    plain = base(Small, layout)
    weights = [layer.weight.size for layer in (plain.conv, plain.up, plain.down)]
    check_gathers(gathered(program), layout, weights)


def check_gathers(sizes, layout, weights):
    if layout in ("data", "tensor"):
        # Activations, which are small here, but no weight.
        assert max(sizes, default=0) < min(weights) / 2
    if layout == "fsdp":
        # Each weight once, which is what FSDP does. (So a gathered weight would be seen.)
        assert {size: sizes.count(size) for size in weights} == dict.fromkeys(weights, 1)


@functools.cache
def train_transformer(layout):
    model = perturbed(adapted_transformer(layout))
    data = Transformer.data() if layout is None else on(layout, Transformer.data())
    # Adam counts its steps in integers.
    with jax.numpy_dtype_promotion("standard"):
        return train(model, data, optax.adam(1e-2, eps=1e-4), 2)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS if ALL else ["fsdp", "2d"])
def test_a_transformer_with_stacked_blocks_and_adam(layout):
    trained, losses, program = train_transformer(layout)
    expected, expected_losses, _ = train_transformer(None)
    assert_close(losses, expected_losses, rtol=1e-5)
    assert_close(trained, expected, rtol=1e-4, atol=1e-5)
    # A stack is never whole on a device, in FSDP neither: at most one block at a time.
    assert max(gathered(program), default=0) < base(Transformer, layout).blocks.up.weight.size


def test_adapting_under_jit_gives_the_same_values():
    @eqx.filter_jit
    def make(model):
        return adapt(model, wrappers_of("DoRA"))

    assert_close(make(base(Small, "2d")), adapted("DoRA", "2d"), rtol=1e-6, atol=1e-7)
