"""Training an ensemble of adapters, one adapter, or the ensemble written by hand. Serves ours."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from jno.lora import Net
from jno_lora_uncertainty import Ensemble

from ._models import data_of, model_of
from ._timing import Subject
from .jax_train import add_training


class Members(eqx.Module):
    """The members of an ensemble as one model, of one input for each member."""

    ensemble: Ensemble

    def __call__(self, x: jax.Array) -> jax.Array:
        """The outputs of all members."""
        return self.ensemble.each(lambda member, x: member(x), x)


class ByHand(eqx.Module):
    """LoRA of five copies of a model with ReLU between its layers, in plain JAX: the floor.

    A matrix multiplies the inputs of all members at once. A kernel is merged for each member,
    which was faster than the base's convolution of all members and two small ones for each beside.
    """

    weights: list[jax.Array]
    biases: list[jax.Array]
    A: list[jax.Array]
    B: list[jax.Array]

    def __call__(self, x: jax.Array) -> jax.Array:
        """The outputs of all members."""
        for number, layer in enumerate(zip(self.weights, self.biases, self.A, self.B, strict=True)):
            x = _layer(*layer, jax.nn.relu(x) if number else x)
        return x


def _layer(W: jax.Array, b: jax.Array, A: jax.Array, B: jax.Array, x: jax.Array) -> jax.Array:
    if W.ndim == 2:
        return x @ W.T + jnp.einsum("mr,mor->mo", jnp.einsum("mi,mri->mr", x, A), B) + b
    outputs = [
        lax.conv_general_dilated(x[i][None], W + (B[i] @ A[i]).reshape(W.shape), (1, 1), "SAME")
        for i in range(len(x))
    ]
    return jnp.concatenate(outputs) + b


def build(case: dict[str, Any], device: str) -> Subject:
    """A step of the form of the case: `ensemble`, `one` adapter, or `by_hand`."""
    plain, members = model_of(case), case["members"]
    x, y = data_of(case, plain)

    def make(key: Any) -> Net:
        return Net(plain, key=key).freeze().lora(case["rank"])

    key = jax.random.key(1)
    if case["form"] == "one":
        net = make(key)
        model, trains = net.module, net.trainable
    else:
        x, y = (jnp.repeat(array[:, None], members, axis=1) for array in (x, y))
        ensemble = Ensemble(make, members, key=key)
        model = Members(ensemble) if case["form"] == "ensemble" else by_hand(plain, ensemble)
        trained = (lambda m: m.ensemble.trained) if case["form"] == "ensemble" else _factors
        trains = jax.tree.map(lambda _: False, model)
        trains = eqx.tree_at(trained, trains, jax.tree.map(lambda _: True, trained(model)))
    return add_training(Subject(), case, model, trains, (x, y), queue=device == "gpu")


def by_hand(plain: Any, ensemble: Ensemble) -> ByHand:
    """The model with the arrays of the ensemble."""
    adapters, layers = ensemble.trained.layers, plain.layers
    return ByHand(
        [layer.weight for layer in layers],
        [layer.bias for layer in layers],
        [adapter.lora_A for adapter in adapters],
        [adapter.lora_B for adapter in adapters],
    )


def _factors(model: ByHand) -> tuple[list[jax.Array], list[jax.Array]]:
    return model.A, model.B
