"""The candidates, and their training by early stopping."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

import jno_lora_foundax  # noqa: F401  # the adapters of spectral weights
from jno.lora import Net
from jno.lora.extending import imported_for
from jno_lora_compare._fitting import adam
from jno_lora_train import Trainer, TrainingRun

from .. import burgers
from ._data import Family

with imported_for("The demo of a family", "demo", "jno_lora_conditional"):
    from jno_lora_conditional import Conditional, at

# The distance from the pretrained viscosity that counts as 1.
UNIT = 0.06
NOTHING, POOLED, ADAPTER = "no adaptation", "full fine-tuning", "one adapter"
FILM, CONDITIONAL, BOTH = "full, with FiLM", "conditional adapter", "conditional, FiLM"
# Learning rates to choose from: adapters need about ten times the rate of full fine-tuning.
_LOW, _HIGH = (1e-4, 3e-4, 1e-3), (1e-3, 3e-3, 1e-2)
RATES = {POOLED: _LOW, FILM: _LOW, ADAPTER: _HIGH, CONDITIONAL: _HIGH, BOTH: _HIGH}

_ADAPTERS = [
    {"wrapper": "cp", "rank": 4, "alpha": 8},
    {"wrapper": "lora", "rank": 2, "alpha": 4},
]
# Adam moves every number by about its rate, but the gains of FiLM are added to 1, and need more.
_FILM_RATE = 30.0


class Film(eqx.Module):
    """The operator with a gain and a shift of each channel, linear in the viscosity's change.

    Paper: Perez et al., "FiLM: Visual Reasoning with a General Conditioning Layer",
    arXiv:1709.07871.
    """

    model: Any
    gains: list[Array]
    shifts: list[Array]

    def __init__(self, model: Any):
        sizes = [len(layer.bias) for layer in _layers(model)]
        self.model = model
        self.gains = [jnp.zeros(size) for size in sizes]
        self.shifts = [jnp.zeros(size) for size in sizes]

    def at(self, viscosity: Float[Array, ""]) -> Any:
        """The operator at a viscosity."""
        u = _FILM_RATE * (viscosity - burgers.SOURCE) / UNIT
        gains = [1 + u * gain for gain in self.gains]
        layers = [
            _modulated(layer, gain, u * shift)
            for layer, gain, shift in zip(_layers(self.model), gains, self.shifts, strict=True)
        ]
        spectral = [
            eqx.tree_at(
                _spectral_weights, layer, [w * gain[:, None] for w in _spectral_weights(layer)]
            )
            for layer, gain in zip(_spectral(self.model), gains[1:-1], strict=True)
        ]
        return eqx.tree_at(
            lambda model: [*_layers(model), *_spectral(model)], self.model, layers + spectral
        )


class Start(NamedTuple):
    """A candidate before training, with its trainable and its frozen part."""

    candidate: Any
    trainable: PyTree
    frozen: PyTree


def start(name: str, model: PyTree, basis: Any, key: PRNGKeyArray) -> Start:
    """The candidate of this name. The conditional adapters are functions of the `basis`."""
    if name == POOLED:
        return Start(model, *Net(model).partition())
    if name == FILM:
        return Start(film := Film(model), *eqx.partition(film, eqx.is_inexact_array))
    net = Net(model, key=key).freeze().lora(specs=_ADAPTERS)
    if name == ADAPTER:
        return Start(net.module, *net.partition())
    conditional = Conditional(net, basis, film=name == BOTH)
    return Start(conditional, *conditional.partition())


def model_at(candidate: PyTree, viscosity: Float[Array, ""]) -> Any:
    """The model of a candidate at a viscosity."""
    if isinstance(candidate, Conditional):
        return at(candidate, viscosity)
    return candidate.at(viscosity) if isinstance(candidate, Film) else candidate


def errors(candidate: PyTree, family: Family) -> Float[Array, "values number"]:
    """The relative error of each simulation, by viscosity."""
    return jax.vmap(lambda nu, *pair: burgers.errors(model_at(candidate, nu), pair))(*family)


class Protocol(NamedTuple):
    """Early stopping as in `burgers.Protocol`, validated on a quarter of each viscosity's data."""

    steps: int
    rates: int = 3  # how many of a candidate's rates to try
    every: int = 10
    patience: int = 6  # evaluations without a new best
    batch: int = 2  # simulations of each viscosity
    validation: int = 8  # shifted simulations of each viscosity

    def adapt(
        self, name: str, begin: Start, family: Family, on_rate: Callable[[], None]
    ) -> tuple[PyTree, float]:
        """The trained candidate, and the rate that was best on the validation split."""
        trainer = Trainer(lambda candidate, batch: jnp.mean(errors(candidate, batch)), adam())
        held_out = max(1, family.number // 4)
        validation = family.first(held_out).spread(self.validation)
        runs: dict[float, TrainingRun] = {}
        for rate in RATES[name][: self.rates]:
            runs[rate] = self._run(trainer, begin, rate, family.after(held_out), validation)
            on_rate()
        best = min(runs, key=lambda rate: runs[rate].best_loss)
        return eqx.combine(runs[best].best, begin.frozen), best

    def _run(
        self, trainer: Trainer, begin: Start, rate: float, training: Family, validation: Family
    ) -> TrainingRun:
        rng = np.random.default_rng(0)

        def evaluated(run: TrainingRun) -> TrainingRun:
            candidate = eqx.combine(run.trainable, begin.frozen)
            return run.evaluated(trainer.evaluate(candidate, [validation]))

        run = trainer.start(begin.trainable)
        run.state.hyperparams["learning_rate"] = jnp.asarray(rate, jnp.float32)
        run = evaluated(run)  # the untouched model is a candidate too
        while run.step < self.steps and run.waited < self.patience:
            run, _ = trainer.step(run, begin.frozen, training.batch(self.batch, rng))
            if run.step % self.every == 0:
                run = evaluated(run)
        return run


def _layers(model: Any) -> list[Any]:
    """The layers whose outputs FiLM changes, with a bias each."""
    return [model.lift, *model.spectral_layers.layers_w, model.proj1]


def _spectral(model: Any) -> list[Any]:
    """The spectral layers, whose outputs are added to the outputs of `layers_w`."""
    return model.spectral_layers.layers_conv


def _spectral_weights(layer: Any) -> list[Any]:
    return [layer.weight_real, layer.weight_imag]  # (in, out, modes)


def _modulated(layer: Any, gain: Float[Array, " out"], shift: Float[Array, " out"]) -> Any:
    """The layer with the output `gain * output + shift`."""

    def as_first_axis(values: Array, array: Array) -> Array:
        return values.reshape(-1, *[1] * (array.ndim - 1))

    weight = layer.weight * as_first_axis(gain, layer.weight)
    bias = layer.bias * as_first_axis(gain, layer.bias) + as_first_axis(shift, layer.bias)
    return eqx.tree_at(lambda leaf: [leaf.weight, leaf.bias], layer, [weight, bias])
