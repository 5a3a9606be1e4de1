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


class OperatorByHand(eqx.Module):
    """CP and LoRA of a Fourier neural operator in plain JAX: the floor. Channels come last.

    The base multiplies the inputs of all members at once, and the factors of each are beside it,
    which was faster than a sum of both for each member, or than one member after the other.
    """

    plain: Any
    spectral: list[list[jax.Array]]  # A, B and the factors of the modes, by layer
    pointwise: list[list[jax.Array]]  # A and B
    modes: int = eqx.field(static=True)

    def __call__(self, x: jax.Array) -> jax.Array:
        """The outputs of all members."""
        layers, points = self.plain.spectral_layers, x.shape[1]
        x = x @ self.plain.lift.weight.T + self.plain.lift.bias
        parts = zip(layers.layers_conv, layers.layers_w, self.spectral, self.pointwise, strict=True)
        for spectral, pointwise, (A, B, c), (a, b) in parts:
            A, B, c = (array[:, 0] + 1j * array[:, 1] for array in (A, B, c))
            W = spectral.weight_real + 1j * spectral.weight_imag
            X = jnp.fft.rfft(x, axis=1, norm="ortho")[:, : self.modes]
            update = jnp.einsum("mkr,mor->mko", jnp.einsum("mki,mri->mkr", X, A) * c, B)
            Y = jnp.einsum("mki,iok->mko", X, W) + update
            padding = ((0, 0), (0, points // 2 + 1 - self.modes), (0, 0))
            y = jnp.fft.irfft(jnp.pad(Y, padding), n=points, axis=1, norm="ortho")
            y += x @ pointwise.weight[..., 0].T + pointwise.bias[:, 0]
            y += jnp.einsum("mpr,mor->mpo", jnp.einsum("mpi,mri->mpr", x, a), b)
            x = jax.nn.gelu(y)
        x = jax.nn.gelu(x @ self.plain.proj1.weight.T + self.plain.proj1.bias)
        return (x @ self.plain.proj2.weight.T + self.plain.proj2.bias)[:, None]


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
        return Net(plain, key=key).freeze().lora(case["rank"], wrapper=case.get("wrappers"))

    key = jax.random.key(1)
    if case["form"] == "one":
        net = make(key)
        model, trains = net.module, net.trainable
    else:
        x, y = (jnp.repeat(array[:, None], members, axis=1) for array in (x, y))
        ensemble = Ensemble(make, members, key=key)
        if case["form"] == "ensemble":
            model, trained = Members(ensemble), lambda m: m.ensemble.trained
        elif case["model"]["kind"] == "fno":
            model = operator_by_hand(plain, ensemble, case["model"]["modes"])

            def trained(m):
                return (m.spectral, m.pointwise)

        else:
            model, trained = by_hand(plain, ensemble), lambda m: (m.A, m.B)
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


def operator_by_hand(plain: Any, ensemble: Ensemble, modes: int) -> OperatorByHand:
    """The operator with the arrays of the ensemble."""
    layers = ensemble.trained.spectral_layers
    names = ("lora_A", "lora_B", "mode_factors")
    spectral = [[getattr(a, name)["weight"] for name in names] for a in layers.layers_conv]
    return OperatorByHand(plain, spectral, [[a.lora_A, a.lora_B] for a in layers.layers_w], modes)
