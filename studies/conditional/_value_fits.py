"""Estimates of an unknown value from one simulation, by adapters and by models with FiLM."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jno.lora import Net, resolve
from jno_lora_conditional import Conditional, Function, fit

from ._fitting import State
from ._methods import AGAIN_HEADLINE, FILM, FILM_BY_NUMBER, Method
from ._prepared import Prepared
from ._tasks import Samples, Task

# The forms of the fit. The form of the goal was chosen before any run.
FORMS = OWN, LOG, STARTS, WEIGHTS = "own coordinate", "log", "log, 3 starts", "log, weights"
GOAL_FORM = STARTS
FITTED = (AGAIN_HEADLINE, FILM.name, FILM_BY_NUMBER.name)
DRAWS, POINTS, STEPS = 16, 18, 8  # simulations, points of the grid, steps of Newton's method


class Form(NamedTuple):
    """A form of the fit of one model.

    - `coordinate`: of the steps, `"z"` or `"log"`.
    - `starts`: into how many parts the grid is divided. The best point of each is a start.
    - `is_weighted`: whether the residual's Fourier modes are divided by the model's bias.
    """

    coordinate: str
    starts: int
    is_weighted: bool

    def named(self, method: str) -> str:
        """The name in the records."""
        starts = f", {self.starts} starts" if self.starts > 1 else ""
        return f"fit, {self.coordinate}{starts}{', weights' * self.is_weighted}: {method}"


def form_of(name: str, method: Method, task: Task) -> Form:
    """The form that a name of `FORMS` stands for. Several names may stand for one form."""
    is_log = task.log and not (name == OWN and method.by_number)
    return Form("log" if is_log else "z", 3 if name == STARTS else 1, name == WEIGHTS)


def forms_of(method: Method, task: Task) -> list[Form]:
    """The forms that differ."""
    return list(dict.fromkeys(form_of(name, method, task) for name in FORMS))


class ValueFits:
    """Fits of the value alone, to one simulation each. All models have the same optimiser."""

    def __init__(self, ready: Prepared, state: State, samples: int, seed: int):
        self.ready, self.state, self.seed = ready, state, seed
        self.number = _number(ready.task.source)
        validated = max(1, samples // 4)
        fields, solutions, values = (part[:validated] for part in ready.pool(seed, False))
        self.weights: Any = eqx.filter_jit(self._weights)(state, (fields, solutions, values))
        self._run: Any = eqx.filter_jit(self._fits)

    def __call__(self, value: float, form: Form) -> tuple[Array, Array]:
        """The estimate of each simulation, and the error of the predictions at the estimate."""
        task = self.ready.task
        data = tuple(part[:DRAWS] for part in self.ready.target(value, self.seed)[:2])
        place = task.values.index(value)
        test = tuple(part[place] for part in self.ready.tests[:2])
        weights = self.weights if form.is_weighted else jnp.ones_like(self.weights)
        grids = _grid(task).reshape(form.starts, -1)
        return self._run(self.state, data, grids, weights, test, form.coordinate)

    def _residual(self, state: State, z: Any, field: Array, solution: Array) -> Array:
        """The squared residual of each Fourier mode, relative to the solution."""
        predicted = self.ready.task.family.apply(resolve(state.at(z)), field[None])[0]
        modes = jnp.fft.fftn(predicted - solution)
        return (modes.real**2 + modes.imag**2) / (solution.size * jnp.sum(solution**2))

    def _weights(self, state: State, held_out: Samples) -> Array:
        """One over the mean squared residual of each mode, on simulations of known values."""
        residuals = jax.lax.map(lambda s: self._residual(state, s[2], *s[:2]), held_out)
        bias = jnp.mean(residuals, axis=0)
        return jnp.mean(bias) / (bias + 1e-3 * jnp.mean(bias))

    def _fits(
        self, state: State, data: Any, grids: Array, weights: Array, test: Any, coordinate: str
    ) -> tuple[Array, Array]:
        def query(simulation: Any) -> tuple[Array, Array]:
            def loss(number: Any) -> Array:
                z = number(jnp.ones(1))[0]
                return jnp.sum(weights * self._residual(state, z, *simulation))

            found = jax.lax.map(
                lambda grid: fit(self.number, loss, grid, steps=STEPS, coordinate=coordinate), grids
            )
            z = found.z[jnp.argmin(jnp.where(jnp.isnan(found.loss), jnp.inf, found.loss))]
            return z, jnp.mean(self.ready.fitting.errors(state, (*test, z)))

        return jax.lax.map(query, data)


def _grid(task: Task) -> Float[Array, " points"]:
    """Points from the source to somewhat beyond the last value."""
    source, last = task.source, task.outside[-1]
    if task.log:
        return jnp.geomspace(source, last * (last / source) ** 0.2, POINTS)
    return jnp.linspace(source, last + 0.2 * (last - source), POINTS)


def _number(source: float) -> Conditional:
    """A conditional model whose output is the parameter: `fit` takes nothing but conditionals."""
    layer = eqx.nn.Linear(1, 1, use_bias=False, key=jax.random.key(0))
    layer = eqx.tree_at(lambda layer: layer.weight, layer, jnp.full((1, 1), source))
    number = Conditional(Net(layer).freeze().lora(1, 1.0), Function(lambda z: z, source))
    trainable, _ = number.partition()
    return number.update(jax.tree.map(jnp.ones_like, trainable))
