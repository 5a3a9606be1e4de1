"""Our side of `benchmarks.physicsnemo`: its models in Equinox, training, timing, reach."""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import foundax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from foundax.architectures.fno import SpectralConv1d
from jax import lax
from jaxtyping import Array, Float
from studies._families import FNO, relative_errors

from jno.lora import Net, SelectionError, apply_lora, lora_report

from ._timing import Subject, timed

# The relatives in foundax of PhysicsNeMo's operators.
OPERATORS: dict[str, Callable[[Array], Any]] = {
    "FNO": lambda key: foundax.fno2d(1, 32, 16, key=key),
    "DPOT": lambda key: foundax.dpot.Ti(),  # has random weights of its own
    "transformer": lambda key: foundax.gnot(2, [2], key=key),
    "transformer, PiT": lambda key: foundax.pit(1, 1, key=key),
    "UNet": lambda key: foundax.unet2d(1, 1, key=key),
    "MLP": lambda key: eqx.nn.MLP(512, 512, 512, 6, key=key),
}


def _gelu(x: Array) -> Array:
    """Torch's formula. `jax.nn.gelu` computes `erfc` instead, in three times the time on a CPU."""
    return 0.5 * x * (1 + lax.erf(x / math.sqrt(2)))


class Operator(eqx.Module):
    """PhysicsNeMo's `FNO` in one dimension, of the layers of foundax and Equinox."""

    lift: list[eqx.nn.Conv1d]
    spectral: list[SpectralConv1d]
    pointwise: list[eqx.nn.Conv1d]
    decoder: list[eqx.nn.Linear]

    def __init__(self, key: Array, width: int = 32, modes: int = 16, layers: int = 4):
        keys = iter(jax.random.split(key, 2 * layers + 5))
        sizes = ((2, width // 2), (width // 2, width))
        self.lift = [eqx.nn.Conv1d(*channels, 1, key=next(keys)) for channels in sizes]
        blocks = range(layers)
        options = {"linear_conv": False}
        self.spectral = [
            SpectralConv1d(width, width, modes, key=next(keys), **options) for _ in blocks
        ]
        self.pointwise = [eqx.nn.Conv1d(width, width, 1, key=next(keys)) for _ in blocks]
        outputs = (width, width, 1)
        self.decoder = [eqx.nn.Linear(width, size, key=next(keys)) for size in outputs]

    def __call__(self, field: Float[Array, " points"]) -> Float[Array, " points"]:
        """The solution for an initial field."""
        h = jnp.stack([field, jnp.linspace(0, 1, len(field))])
        h = self.lift[1](_gelu(self.lift[0](h)))
        for index, layers in enumerate(zip(self.spectral, self.pointwise, strict=True), 1):
            spectral, pointwise = layers
            h = pointwise(h) + spectral(h.T).T
            h = h if index == len(self.spectral) else _gelu(h)
        h = h.T
        for layer in self.decoder[:-1]:
            h = jax.nn.silu(jax.vmap(layer)(h))
        return jax.vmap(self.decoder[-1])(h)[:, 0]

    def state(self) -> dict[str, np.ndarray]:
        """The weights under PhysicsNeMo's names."""
        names = {
            "spec_encoder.lift_network.0.conv": self.lift[0],
            "spec_encoder.lift_network.2.conv": self.lift[1],
            "decoder_net.layers.0.linear": self.decoder[0],
            "decoder_net.layers.1.linear": self.decoder[1],
            "decoder_net.final_layer.linear": self.decoder[2],
        }
        names |= {f"spec_encoder.conv_layers.{i}": p for i, p in enumerate(self.pointwise)}
        arrays: dict[str, Any] = {}
        for name, layer in names.items():
            bias: Any = layer.bias
            arrays |= {f"{name}.weight": layer.weight, f"{name}.bias": bias.reshape(-1)}
        for i, layer in enumerate(self.spectral):
            parts = layer.weight_real, layer.weight_imag
            arrays[f"spec_encoder.spconv_layers.{i}.weights1"] = jnp.stack(parts, axis=-1)
        return {name: np.asarray(array) for name, array in arrays.items()}


# The operator study's model, equation and pretraining, with PhysicsNeMo's architecture.
FAMILY = dataclasses.replace(
    FNO,
    name="physicsnemo-fno1d",
    make=Operator,
    apply=lambda model, fields: jax.vmap(model)(fields),
    head="decoder",
    spectral="spectral",
)


def reach() -> dict[str, dict[str, Any]]:
    """For each operator, its parameters and the fraction of them in layers that get an adapter."""
    facts: dict[str, dict[str, Any]] = {}
    for name, make in OPERATORS.items():
        key = jax.random.key(0)
        model = eqx.filter_eval_shape(make, key)
        arrays = [x for x in jax.tree.leaves(model) if hasattr(x, "dtype")]
        total = sum(math.prod(x.shape) for x in arrays if jnp.issubdtype(x.dtype, jnp.inexact))

        def adapted(wrappers: str | None, make: Any = make, key: Array = key) -> Any:
            return apply_lora(make(key), 1, 1.0, key=key, wrapper=wrappers)

        facts[name] = {"parameters": total}
        for column, wrappers in (("unnamed", None), ("reached", "lora")):
            try:
                rows = lora_report(eqx.filter_eval_shape(adapted, wrappers)).rows
            except SelectionError:  # no layer fits
                rows = ()
            facts[name][column] = sum(row.total - row.trainable for row in rows) / total
    return facts


def fit(net: Net, data: dict[str, Array], rates: tuple[float, ...]) -> list[dict[str, Any]]:
    """For each rate: losses, and the errors on new fields, for the batches of the net's seed."""
    trainable, frozen = net.partition()
    arrays, static = eqx.partition(frozen, eqx.is_array)
    optimiser = optax.scale_by_adam()
    steps = len(data["batches"])

    def error(trainable: Any, arrays: Any, x: Array, y: Array) -> Array:
        model = eqx.combine(trainable, arrays, static)
        return jnp.mean(relative_errors(jax.vmap(model)(x), y))

    @jax.jit
    def run(trainable: Any, arrays: Any, data: dict[str, Array], rate: Array) -> Any:
        def step(carry: Any, now: Any) -> Any:
            trainable, moments = carry
            number, batch = now
            x, y = data["train_x"][batch], data["train_y"][batch]
            loss, gradient = jax.value_and_grad(error)(trainable, arrays, x, y)
            updates, moments = optimiser.update(gradient, moments)
            slope = -rate * 0.5 * (1 + jnp.cos(jnp.pi * number / steps))
            moved = jax.tree.map(lambda array, u: array + slope * u, trainable, updates)
            return (moved, moments), loss

        def errors(trainable: Any, of: str) -> Array:
            return error(trainable, arrays, data[f"{of}_x"], data[f"{of}_y"])

        start = errors(trainable, "test")
        numbered = (jnp.arange(steps, dtype=jnp.float32), data["batches"])
        (trainable, _), losses = jax.lax.scan(
            step, (trainable, optimiser.init(trainable)), numbered
        )
        ends = {of: errors(trainable, of) for of in ("validation", "test")}
        return {"start": start, "losses": losses, **ends}

    runs = {rate: run(trainable, arrays, data, jnp.asarray(rate)) for rate in rates}
    return [
        {"rate": rate, **{name: np.asarray(value).tolist() for name, value in result.items()}}
        for rate, result in runs.items()
    ]


def build(case: dict[str, Any], device: str) -> Subject:
    """A step of training and a forward pass. `target` says which layers get adapters."""
    key = jax.random.key(0)
    if case["model"] == "fno":
        model, shape = Operator(key), (case["batch"], case["points"])
    else:
        model = eqx.nn.MLP(512, 512, 512, 6, activation=jax.nn.silu, key=key)
        shape = (case["batch"], 512)
    net = Net(model).freeze().lora(case["rank"], target=case["target"], wrapper="lora")
    trainable, frozen = net.partition()
    arrays, static = eqx.partition(frozen, eqx.is_array)
    optimiser = optax.adam(1e-3)
    x, y = jax.random.normal(key, (2, *shape))

    def forward(trainable: Any, arrays: Any, x: Array) -> Array:
        return jax.vmap(eqx.combine(trainable, arrays, static))(x)

    def step(state: Any, arrays: Any, x: Array, y: Array) -> Any:
        trainable, moments = state

        def loss(trainable: Any) -> Array:
            return jnp.mean((forward(trainable, arrays, x) - y) ** 2)

        value, gradient = jax.value_and_grad(loss)(trainable)
        updates, moments = optimiser.update(gradient, moments)
        return (optax.apply_updates(trainable, updates), moments), value

    jitted = jax.jit(step)
    jitted_forward = jax.jit(forward)
    current = [(trainable, optimiser.init(trainable))]
    memory: Any = jitted.lower(current[0], arrays, x, y).compile().memory_analysis()

    def next_step() -> Array:
        current[0], value = jitted(current[0], arrays, x, y)
        return value

    calls = {"step": next_step, "forward": lambda: jitted_forward(trainable, arrays, x)}
    count = sum(leaf.size for leaf in jax.tree.leaves(trainable))
    facts = {"trainable": count, "temp": memory.temp_size_in_bytes + memory.output_size_in_bytes}
    measures = {
        name: timed(call, jax.block_until_ready, queue=False, clock=time.process_time)
        for name, call in calls.items()
    }
    return Subject(facts, measures)
