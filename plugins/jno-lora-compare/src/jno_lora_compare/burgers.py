"""The viscous Burgers equation as a small task: a neural operator moves to another viscosity.

    u_t + u u_x = nu u_xx,    x in [0, 2 pi) periodic,    u(x, 0) -> u(x, 1)

`simulate` makes data, `operator` a model, and a `Protocol` adapts it to few simulations by early
stopping. `examples/burgers_operator.py` and `jno-lora demo --task operator` are made of these
parts. They need the libraries of the extra `demo`.
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
from jno.lora.extending import imported_for, new_picture

from ._compare import adam
from ._fitting import Trainer
from ._training_run import TrainingRun

with imported_for("The Burgers task", "demo", "foundax", "optax"):
    import optax
    from foundax import fno1d

GRID, TIME = 64, 1.0
SOURCE, TARGET = 0.1, 0.02  # viscosities

# Fields at time 0 and at `TIME`.
Simulations: TypeAlias = Sequence[Any]

_BATCH = 8
_VALIDATION = 16  # fields: few simulations, shifted. Tests take as many at a time, for one program


def initial_fields(key: PRNGKeyArray, number: int) -> Float[Array, "fields points"]:
    """Random smooth periodic fields on `4 * GRID` points, of standard deviation 1."""
    modes = jnp.arange(1.0, 5.0)
    size = jnp.exp(-0.5 * (modes / 2.0) ** 2)
    size = size / jnp.sqrt(jnp.sum(size**2))
    a, b = jax.random.normal(key, (2, number, modes.size)) * size[None, None, :]
    x = jnp.linspace(0, 2 * jnp.pi, 4 * GRID, endpoint=False)
    angle = modes[:, None] * x[None, :]
    return a @ jnp.cos(angle) + b @ jnp.sin(angle)


@eqx.filter_jit
def solve(
    u: Float[Array, "fields points"], viscosity: float, steps: int = 400
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

    # Factors of the mask and of the modes are real: JAX's own promotion.
    with jax.numpy_dtype_promotion("standard"):
        v, _ = jax.lax.scan(step, jnp.fft.rfft(u), length=steps)
    return jnp.fft.irfft(v, n)


def simulate(key: PRNGKeyArray, number: int, viscosity: float) -> Simulations:
    """Random fields and their solutions, each `(number, GRID)`, solved on four times the points."""
    fields = initial_fields(key, number)
    return np.asarray(fields[:, ::4]), np.asarray(solve(fields, viscosity)[:, ::4])


def shifted(simulations: Simulations, numbers: Any, shifts: Any) -> Simulations:
    """The simulations of these numbers, each moved by so many points.

    The equation is the same at every `x`, so a shifted simulation is a new simulation.
    """
    points = (np.arange(GRID) - np.asarray(shifts)[:, None]) % GRID
    starts, ends = (part[np.asarray(numbers)[:, None], points] for part in simulations)
    return starts, ends


def batch_of(simulations: Simulations, size: int, rng: np.random.Generator) -> Simulations:
    """Random simulations at random shifts."""
    numbers = rng.integers(len(simulations[0]), size=size)
    return shifted(simulations, numbers, rng.integers(GRID, size=size))


def operator(key: PRNGKeyArray) -> Any:
    """A Fourier neural operator that is not trained: three layers, 16 modes, 32 channels."""
    return fno1d(2, 32, 16, n_layers=3, key=key)


def predict(model: PyTree, fields: Float[Any, "fields grid"]) -> Float[Array, "fields grid"]:
    """The fields that `model` predicts for time `TIME`. It also sees the coordinate."""
    x = jnp.broadcast_to(jnp.linspace(-1, 1, GRID, endpoint=False), fields.shape)
    return jax.vmap(model)(jnp.stack([jnp.asarray(fields), x], axis=-1))[:, 0, :, 0]


def loss(model: PyTree, simulations: Simulations) -> Float[Array, ""]:
    """The relative L2 error of the predicted fields, in the mean over the fields."""
    fields, solutions = simulations
    off = predict(model, fields) - solutions
    return jnp.mean(jnp.linalg.norm(off, axis=-1) / jnp.linalg.norm(solutions, axis=-1))


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
    """The best model that a `Protocol` found, its error on the validation split, its rate."""

    model: Any
    validation_error: float
    rate: float


@dataclasses.dataclass(frozen=True)
class Protocol:
    """Early stopping, the same for every candidate.

    A quarter of the simulations, at least one, is for validation, and the rest trains. The error on
    the validation split is measured before the first step and then `every` so many. Training stops
    when it has not fallen `patience` times in a row. The arrays with the smallest error are kept:
    those from before the first step, if no later ones are better. The learning rate with the
    smallest error counts.

    - `rates`: of Adam, each tried from the start.
    - `steps`: the most that are trained at a rate, on batches of 8 shifted simulations.
    """

    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    steps: int = 400
    every: int = 10
    patience: int = 10
    trainer: Trainer = dataclasses.field(default_factory=lambda: Trainer(loss, adam()))

    def adapt(
        self, net: Net, simulations: Simulations, on_rate: Callable[[], None] = lambda: None
    ) -> Adapted:
        """Train what `net` trains, and leave its best arrays in it.

        **Raises:** `ValueError` for less than two simulations: one trains, one validates.
        """
        count = len(simulations[0])
        if count < 2:
            raise ValueError(f"`simulations` should hold two or more, but holds {count}.")
        held = max(1, count // 4)
        every_shift = np.arange(_VALIDATION) * GRID // _VALIDATION
        validation = shifted(simulations, np.arange(_VALIDATION) % held, every_shift)
        starts, ends = simulations
        trainable, frozen = net.partition()

        def at(rate: float) -> TrainingRun:
            run = self._run(trainable, frozen, (starts[held:], ends[held:]), validation, rate)
            on_rate()
            return run

        runs = [at(rate) for rate in self.rates]
        best = min(range(len(runs)), key=lambda number: runs[number].best_loss)
        net.update(runs[best].best)
        return Adapted(net.module, runs[best].best_loss, self.rates[best])

    def error(self, model: PyTree, simulations: Simulations) -> float:
        """The loss on all simulations, in batches of the size of the validation split.

        **Raises:** `ValueError` if their number is not a multiple of 16.
        """
        count = len(simulations[0])
        if count == 0 or count % _VALIDATION:
            raise ValueError(f"`simulations` should hold a multiple of 16, but holds {count}.")
        parts = (np.split(np.asarray(part), count // _VALIDATION) for part in simulations)
        return self.trainer.evaluate(model, zip(*parts, strict=True))

    def _run(
        self,
        trainable: PyTree,
        frozen: PyTree,
        training: Simulations,
        validation: Simulations,
        rate: float,
    ) -> TrainingRun:
        trainer, rng = self.trainer, np.random.default_rng(0)

        def evaluated(run: TrainingRun) -> TrainingRun:
            model = eqx.combine(run.trainable, frozen)
            return run.evaluated(trainer.evaluate(model, [validation]))

        run = trainer.start(trainable)
        run.state.hyperparams["learning_rate"] = jnp.asarray(rate, jnp.float32)
        run = evaluated(run)  # the untouched model is a candidate
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
    """Draw the error by number of simulations, and two fields as the models predict them.

    The background is transparent, and all colours are readable on white and on black.

    **Arguments:**

    - `path`: where to, in the format of its ending.
    - `errors`: of each candidate, one for each of `counts`. The first is drawn as a dotted line.
    - `models`: candidates whose fields are drawn.
    - `simulations`: the first two of them are drawn.
    """
    figure = new_picture(11, 3.6, path)
    import matplotlib
    from matplotlib import colormaps

    grey = "#7f8790"
    colors = dict(zip(errors, colormaps["tab10"].colors, strict=False))  # pyright: ignore[reportAttributeAccessIssue]
    colors[next(iter(errors))] = grey
    reached, *fields = figure.subplots(1, 3, width_ratios=(5, 4, 4))
    for name, values in errors.items():
        style = ":" if name == next(iter(errors)) else "o-"
        reached.plot(counts, values, style, color=colors[name], lw=1.4, ms=4, label=name)
    reached.set(xscale="log", yscale="log", xlabel="simulations")
    reached.set_title("relative error of new fields", color=grey, fontsize="medium")
    reached.set_xticks(counts, [str(count) for count in counts])
    low, high = (limit(map(limit, errors.values())) for limit in (min, max))
    ticks = [
        tick for tick in (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1) if low < 1.2 * tick < 1.3 * high
    ]
    reached.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    x = np.linspace(0, 2 * np.pi, GRID, endpoint=False)
    predicted = {name: predict(model, simulations[0][:2]) for name, model in models.items()}
    for number, axes in enumerate(fields):
        axes.plot(x, simulations[1][number], color=grey, lw=4, alpha=0.5, label="solution")
        for name, ends in predicted.items():
            axes.plot(x, ends[number], color=colors[name], lw=1.2, label=name)
        axes.set_xlabel("x")
        axes.set_title(f"field {number + 1} at time {TIME:g}", color=grey, fontsize="medium")
    for axes in (reached, *fields):
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(grey)
        axes.tick_params(colors=grey, which="both")
        axes.xaxis.label.set_color(grey)
        axes.patch.set_alpha(0)
        legend = axes.legend(fontsize="x-small", frameon=False, labelcolor=grey)
        legend.set_zorder(0)
    # The same file for the same numbers.
    with matplotlib.rc_context({"svg.hashsalt": "burgers"}):
        metadata = {"Date": None} if str(path).endswith(".svg") else None
        figure.savefig(path, transparent=True, metadata=metadata)
