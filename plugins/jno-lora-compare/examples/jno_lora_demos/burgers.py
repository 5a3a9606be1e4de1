"""The viscous Burgers equation as a small task: adapt a neural operator to another viscosity.

    u_t + u u_x = nu u_xx,    x in [0, 2 pi) periodic,    u(x, 0) -> u(x, 1)

`simulate` makes data, `operator` makes a model, and a `Protocol` adapts the model to few
simulations by early stopping. All functions need the libraries of the extra `demo`.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, PRNGKeyArray, PyTree

from jno.lora import Net
from jno.lora.extending import imported_for
from jno_lora_combine import new_picture
from jno_lora_compare._fitting import adam
from jno_lora_train import Trainer, TrainingRun

from ._style import GREY, STYLE, save

with imported_for("The Burgers task", "demo", "foundax", "optax"):
    import optax
    from foundax import fno1d

GRID, TIME = 64, 1.0
SOURCE, TARGET = 0.1, 0.02  # viscosities

# Fields at time 0 and at `TIME`.
Simulations: TypeAlias = Sequence[Any]

_BATCH = 8
_VALIDATION = 16  # shifted fields. Tests use this batch size too, so that one program serves both.


def initial_fields(key: PRNGKeyArray, number: int) -> Float[Array, "fields points"]:
    """Random smooth periodic fields on `4 * GRID` points, of standard deviation 1."""
    modes = jnp.arange(1.0, 5.0)
    size = jnp.exp(-0.5 * (modes / 2.0) ** 2)
    size /= jnp.sqrt(jnp.sum(size**2))
    a, b = jax.random.normal(key, (2, number, modes.size)) * size[None, None, :]
    x = jnp.linspace(0, 2 * jnp.pi, 4 * GRID, endpoint=False)
    angle = modes[:, None] * x[None, :]
    return a @ jnp.cos(angle) + b @ jnp.sin(angle)


@eqx.filter_jit
def solve(
    u: Float[Array, "fields points"], viscosity: float | Float[Array, ""], steps: int = 400
) -> Float[Array, "fields points"]:
    """Solve for `u` at time `TIME` by a pseudo-spectral method with 2/3 dealiasing.

    Fourth-order Runge-Kutta steps integrate `exp(nu k^2 t) u_k`, so diffusion is exact.
    """
    n = u.shape[-1]
    k = jnp.arange(n // 2 + 1, dtype=u.dtype)[None, :]
    keep, dt = k < n / 3, TIME / steps
    half = jnp.exp(-viscosity * k**2 * dt / 2)

    def rate(v: Complex[Array, "fields modes"]) -> Complex[Array, "fields modes"]:
        # -(u^2 / 2)_x, without the modes that u^2 would alias.
        return -0.5j * k * keep * jnp.fft.rfft(jnp.fft.irfft(v * keep, n) ** 2)

    def step(v: Complex[Array, "fields modes"], _: None) -> tuple[Any, None]:
        a = rate(v)
        b = rate(half * (v + dt / 2 * a))
        c = rate(half * v + dt / 2 * b)
        d = rate(half**2 * v + dt * half * c)
        return half**2 * v + dt / 6 * (half**2 * a + 2 * half * (b + c) + d), None

    # JAX must promote the real mask and wave numbers, which are multiplied by complex modes.
    with jax.numpy_dtype_promotion("standard"):
        v, _ = jax.lax.scan(step, jnp.fft.rfft(u), length=steps)
    return jnp.fft.irfft(v, n)


def simulate(key: PRNGKeyArray, number: int, viscosity: float) -> Simulations:
    """Random fields and their solutions, each `(number, GRID)`, solved on four times the points."""
    fields = initial_fields(key, number)
    return np.asarray(fields[:, ::4]), np.asarray(solve(fields, viscosity)[:, ::4])


def shifted(simulations: Simulations, numbers: Any, shifts: Any) -> Simulations:
    """The simulations at the indices `numbers`, each moved by its number of points in `shifts`.

    The equation is the same at every `x`, so a shifted simulation is a new simulation.
    """
    points = (np.arange(GRID) - np.asarray(shifts)[:, None]) % GRID
    return tuple(fields[np.asarray(numbers)[:, None], points] for fields in simulations)


def batch_of(simulations: Simulations, size: int, rng: np.random.Generator) -> Simulations:
    """Random simulations at random shifts."""
    numbers = rng.integers(len(simulations[0]), size=size)
    return shifted(simulations, numbers, rng.integers(GRID, size=size))


def operator(key: PRNGKeyArray) -> Any:
    """An untrained Fourier neural operator: three layers, 16 modes, 32 channels."""
    return fno1d(2, 32, 16, n_layers=3, key=key)


def predict(model: PyTree, fields: Float[Any, "fields grid"]) -> Float[Array, "fields grid"]:
    """The fields that `model` predicts for time `TIME`. The coordinate is its second input."""
    x = jnp.broadcast_to(jnp.linspace(-1, 1, GRID, endpoint=False), fields.shape)
    return jax.vmap(model)(jnp.stack([jnp.asarray(fields), x], axis=-1))[:, 0, :, 0]


def errors(model: PyTree, simulations: Simulations) -> Float[Array, " fields"]:
    """The relative L2 error of each predicted field."""
    fields, solutions = simulations
    error = predict(model, fields) - solutions
    return jnp.linalg.norm(error, axis=-1) / jnp.linalg.norm(solutions, axis=-1)


def loss(model: PyTree, simulations: Simulations) -> Float[Array, ""]:
    """The relative L2 error of the predicted fields, averaged over the fields."""
    return jnp.mean(errors(model, simulations))


def pretrain(
    model: PyTree,
    simulations: Simulations,
    steps: int,
    *,
    batch: int = 32,
    on_step: Callable[[], None] = lambda: None,
) -> Any:
    """Train all of `model` by Adam, with a rate that decays to zero."""
    net, rng = Net(model), np.random.default_rng(0)
    batches = (batch_of(simulations, batch, rng) for _ in range(steps))
    trainer = Trainer(loss, optax.adam(optax.cosine_decay_schedule(2e-3, steps)))
    fit = trainer.fit(*net.partition(), batches, on_step=on_step)
    return net.update(fit.trainable).module


class Adapted(NamedTuple):
    """The best model of a `Protocol`, its error on the validation split, and its learning rate."""

    model: Any
    validation_error: float
    rate: float


@dataclasses.dataclass(frozen=True)
class Protocol:
    """Early stopping, the same for every candidate.

    A quarter of the simulations, at least one, is used for validation, and the model trains on the
    remaining simulations. The error on the validation split is measured before the first step, and
    then every `every` steps. Training stops when the error has not fallen `patience` times in a
    row. The arrays and the learning rate with the smallest error are kept; these may be the arrays
    before training.

    - `rates`: learning rates of Adam, each tried from the start.
    - `steps`: the most steps at a rate, on batches of 8 shifted simulations.
    """

    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    steps: int = 400
    every: int = 10
    patience: int = 10
    trainer: Trainer = dataclasses.field(default_factory=lambda: Trainer(loss, adam()))

    def adapt(
        self, net: Net, simulations: Simulations, on_rate: Callable[[], None] = lambda: None
    ) -> Adapted:
        """Train the trainable part of `net`, and leave the best arrays in `net`.

        **Raises:** `ValueError` for fewer than two simulations (one to train, one to validate).
        """
        count = len(simulations[0])
        if count < 2:
            raise ValueError(f"`simulations` should hold two or more, but holds {count}.")
        held_out = max(1, count // 4)
        even_shifts = np.arange(_VALIDATION) * GRID // _VALIDATION
        validation = shifted(simulations, np.arange(_VALIDATION) % held_out, even_shifts)
        training = [fields[held_out:] for fields in simulations]
        runs: dict[float, TrainingRun] = {}
        for rate in self.rates:
            runs[rate] = self._run(net, rate, training, validation)
            on_rate()
        best_rate = min(runs, key=lambda rate: runs[rate].best_loss)
        net.update(runs[best_rate].best)
        return Adapted(net.module, runs[best_rate].best_loss, best_rate)

    def error(self, model: PyTree, simulations: Simulations) -> float:
        """The loss on all simulations, in batches of 16, the size of the validation split.

        **Raises:** `ValueError` if the number of simulations is not a multiple of 16.
        """
        count = len(simulations[0])
        if count == 0 or count % _VALIDATION:
            raise ValueError(f"`simulations` should hold a multiple of 16, but holds {count}.")
        starts, ends = (np.split(np.asarray(u), count // _VALIDATION) for u in simulations)
        return self.trainer.evaluate(model, zip(starts, ends, strict=True))

    def _run(
        self, net: Net, rate: float, training: Simulations, validation: Simulations
    ) -> TrainingRun:
        trainer, rng = self.trainer, np.random.default_rng(0)
        trainable, frozen = net.partition()

        def evaluated(run: TrainingRun) -> TrainingRun:
            model = eqx.combine(run.trainable, frozen)
            return run.evaluated(trainer.evaluate(model, [validation]))

        run = trainer.start(trainable)
        run.state.hyperparams["learning_rate"] = jnp.asarray(rate, jnp.float32)
        run = evaluated(run)  # the untouched model is a candidate too
        while run.step < self.steps and run.waited < self.patience:
            run, _ = trainer.step(run, frozen, batch_of(training, _BATCH, rng))
            if run.step % self.every == 0:
                run = evaluated(run)
        return run


def draw(
    path: Any,
    errors: Mapping[str, Sequence[float]],
    counts: Sequence[int],
    models: Mapping[str, PyTree],
    simulations: Simulations,
) -> None:
    """Draw the error by number of simulations, and the models' predictions of two fields.

    The background is transparent, and all colours are readable on white and on black.

    - `path`: a file for the figure, in the format of its ending.
    - `errors`: by candidate, an error for each of `counts`. The first line is dotted.
    - `models`: the models whose predictions are drawn, by candidate.
    - `simulations`: test simulations. The first two are drawn.
    """
    figure = new_picture(11, 3.6, path)
    from matplotlib import colormaps, rc_context

    colors = dict(zip(errors, colormaps["tab10"].colors, strict=False))  # pyright: ignore[reportAttributeAccessIssue]
    colors[next(iter(errors))] = GREY
    with rc_context(STYLE):
        curves, *fields = figure.subplots(1, 3, width_ratios=(5, 4, 4))
        for name, values in errors.items():
            line = ":" if colors[name] == GREY else "o-"
            curves.plot(counts, values, line, color=colors[name], lw=1.4, ms=4, label=name)
        _scale(curves, errors, counts)
        x = np.linspace(0, 2 * np.pi, GRID, endpoint=False)
        predicted = {name: predict(model, simulations[0][:2]) for name, model in models.items()}
        for number, axes in enumerate(fields):
            axes.plot(x, simulations[1][number], color=GREY, lw=4, alpha=0.5, label="solution")
            for name, ends in predicted.items():
                axes.plot(x, ends[number], color=colors[name], lw=1.2, label=name)
            axes.set(xlabel="x", title=f"field {number + 1} at time {TIME:g}")
        for axes in (curves, *fields):
            axes.minorticks_off()
            axes.legend().set_zorder(0)
        save(figure, path)


def _scale(axes: Any, errors: Mapping[str, Sequence[float]], counts: Sequence[int]) -> None:
    axes.set(xscale="log", yscale="log", xlabel="simulations", title="relative error of new fields")
    axes.set_xticks(counts, [str(count) for count in counts])
    low, high = min(map(min, errors.values())), max(map(max, errors.values()))
    ticks = [t for t in (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1) if low < 1.2 * t < 1.3 * high]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
