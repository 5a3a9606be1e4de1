"""The models of the JAX sides, from the plain dicts of the cases."""

import importlib
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np


class Convolutions(eqx.Module):
    """Convolutions with a ReLU between each two.

    Not an `eqx.nn.Sequential`, which passes `key=`: some adapters of jNO do not take `key=`.
    """

    layers: list[eqx.nn.Conv2d]

    def __call__(self, x: jax.Array) -> jax.Array:
        """The features of one image, `(channels, height, width)`."""
        *before, last = self.layers
        for layer in before:
            x = jax.nn.relu(layer(x))
        return last(x)


def model_of(case: dict[str, Any]) -> Any:
    """The plain model of a training case."""
    spec, key = case["model"], jax.random.key(0)
    if spec["kind"] == "mlp":
        width, hidden = spec["width"], spec["layers"] - 1
        sizes = (spec.get("inputs", width), spec.get("outputs", width), spec.get("inner", width))
        activation = jnp.tanh if spec.get("activation") == "tanh" else jax.nn.relu
        dtype = dtype_of(case)
        return eqx.nn.MLP(*sizes, hidden, activation=activation, dtype=dtype, key=key)
    if spec["kind"] == "fno":
        fno = importlib.import_module("foundax.architectures.fno")
        options = {"n_layers": spec["layers"], "linear_conv": spec.get("linear_conv", True)}
        return fno.FNO1D(1, spec["channels"], spec["modes"], **options, key=key)
    channels, dilation = spec["channels"], spec.get("dilation", 1)
    return Convolutions(
        [
            eqx.nn.Conv2d(
                channels,
                channels,
                kernel_size=3,
                padding=dilation,
                stride=spec.get("stride", 1),
                dilation=dilation,
                groups=spec.get("groups", 1),
                key=layer_key,
            )
            for layer_key in jax.random.split(key, spec["layers"])
        ]
    )


def dtype_of(case: dict[str, Any]) -> Any:
    """The dtype of a training case's model and data."""
    return jnp.dtype(case["model"].get("dtype", "float32"))


def data_of(case: dict[str, Any], model: Any) -> tuple[jax.Array, jax.Array]:
    """A batch of inputs, and targets of the shape of the outputs."""
    spec = case["model"]
    if spec["kind"] == "mlp":
        shape = (spec.get("inputs", spec["width"]),)
    elif spec["kind"] == "fno":
        shape = (spec["points"], 1)
    else:
        shape = (spec["channels"], *spec["image"])
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((case["batch"], *shape)), dtype_of(case))
    outputs = eqx.filter_eval_shape(jax.vmap(model), x)
    return x, jnp.asarray(rng.standard_normal(outputs.shape), dtype_of(case))


def outputs_of(model: Any, x: Any) -> jax.Array:
    """The outputs for a batch. A batch of a conditional model is a pair: values, and inputs."""
    if not isinstance(x, tuple):
        return jax.vmap(model)(x)
    at = getattr(type(model), "at", None) or importlib.import_module("jno_lora_conditional").at
    z, x = x
    if not z.ndim:
        return jax.vmap(at(model, z))(x)
    return jax.vmap(lambda z, x: at(model, z)(x))(z, x)


def compared_of(case: dict[str, Any], model: Any, x: Any) -> jax.Array:
    """The values that a training case's loss compares with the targets: outputs, or Laplacians."""
    if case.get("loss") != "laplacian":
        return outputs_of(model, x)

    def laplacian(x: jax.Array) -> jax.Array:
        return jnp.trace(jax.hessian(lambda x: model(x)[0])(x))[None]

    return jax.vmap(laplacian)(x)


def many_layers(number: int, width: int) -> eqx.nn.Sequential:
    """`number` small `Linear` layers that share no arrays."""
    treedef = jax.tree.structure(eqx.nn.Linear(width, width, key=jax.random.key(0)))
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((number, width, width)).astype(np.float32)
    biases = rng.standard_normal((number, width)).astype(np.float32)
    pairs = zip(weights, biases, strict=True)
    return eqx.nn.Sequential(
        [jax.tree.unflatten(treedef, [jnp.asarray(W), jnp.asarray(b)]) for W, b in pairs]
    )


def first_layer(model: Any) -> Any:
    """The first layer that an adapter can wrap."""
    return model.layers[0]


def matrix_with_spectrum(spectrum: str, size: int) -> np.ndarray:
    """A square float32 matrix: `gaussian`, or `decaying` with the singular values 1, 1/2, 1/3, …"""
    rng = np.random.default_rng(0)
    if spectrum == "gaussian":
        return rng.standard_normal((size, size)).astype(np.float32) / np.float32(size**0.5)
    left, right = (np.linalg.qr(rng.standard_normal((size, size)))[0] for _ in range(2))
    return ((left / np.arange(1, size + 1)) @ right.T).astype(np.float32)
