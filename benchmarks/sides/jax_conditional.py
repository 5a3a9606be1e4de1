"""Training a conditional adapter, a plain adapter of its rank, or full fine-tuning with FiLM."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from jno.lora import Net
from jno_lora_conditional import Conditional, Powers
from jno_lora_zoo import with_attributes

from ._models import data_of, model_of
from ._timing import Subject
from .jax_train import add_training


class ByHand(eqx.Module):
    """A model of layers with ReLU between them, with a scale and a shift of each output: FiLM."""

    layers: tuple[Any, ...]
    scales: list[jax.Array]
    shifts: list[jax.Array]

    def __init__(self, plain: Any):
        self.layers = tuple(plain.layers)
        self.scales = [jnp.zeros_like(layer.bias) for layer in plain.layers]
        self.shifts = [jnp.zeros_like(layer.bias) for layer in plain.layers]

    def at(self, z: jax.Array) -> Callable[[jax.Array], jax.Array]:
        """The model at one value of the parameter."""

        def model(x: jax.Array) -> jax.Array:
            parts = zip(self.layers, self.scales, self.shifts, strict=True)
            for number, (layer, scale, shift) in enumerate(parts):
                x = layer(jax.nn.relu(x) if number else x)
                x = x * (1 + z * scale) + z * shift
            return x

        return model


def build(case: dict[str, Any], device: str) -> Subject:
    """A step of the form of the case.

    - `plain`: an adapter that knows no parameter.
    - `conditional`: a function of the parameter; `film`: with scales and shifts beside it.
    - `by_hand`: all arrays of the model, with FiLM in plain JAX.
    - `copies`: each example has copies of the fields that move, as if the adapter had no
        `with_directions`.
    """
    plain = model_of(case)
    x, y = data_of(case, plain)
    if case["form"] == "plain":
        net = adapted(case, plain)
        return add_training(
            Subject(), case, net.module, net.trainable, (x, y), queue=device == "gpu"
        )
    if case["form"] == "by_hand":
        model = ByHand(plain)
        trains = jax.tree.map(eqx.is_inexact_array, model)
        data = (values_of(case), x), y
        return add_training(Subject(), case, model, trains, data, queue=device == "gpu")
    conditional = conditional_of(case, plain)
    if case["form"] == "copies":
        copied = tuple((path, ()) for path in conditional.directions)
        conditional = with_attributes(conditional, {"from_zero": copied})
    data = (values_of(case), x), y
    return add_training(
        Subject(), case, conditional, conditional.trainable, data, queue=device == "gpu"
    )


def adapted(case: dict[str, Any], plain: Any) -> Net:
    """The plain model with new adapters, of which nothing else trains."""
    return Net(plain).freeze().lora(case["rank"], wrapper=case["wrappers"])


def conditional_of(case: dict[str, Any], plain: Any) -> Conditional:
    """A conditional adapter with random directions, as if it had been trained."""
    basis = Powers(source=0.0, degree=case.get("degree", 1))
    conditional = Conditional(adapted(case, plain), basis, film=case.get("form") == "film")
    leaves, structure = jax.tree.flatten(conditional.directions)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noise = [0.1 * jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)]
    directions = jax.tree.unflatten(structure, noise)
    return eqx.tree_at(lambda c: c.directions, conditional, directions)


def values_of(case: dict[str, Any]) -> jax.Array:
    """The parameter: a value for the whole batch, or `(batch,)`, a value for each example."""
    return jnp.linspace(0.0, 1.0, case["batch"]) if case["values"] == "each" else jnp.asarray(0.5)
