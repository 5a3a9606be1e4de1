"""Measure which intervals of fitted parameters hold, and which are flagged as outside.

    python -m studies.uncertainty.fits

A table for docs/evidence/uncertainty.md: fits of one simulation each, by adapters trained on four
values of the parameter, at true values inside and outside. `before` flags a fitted value beyond the
training values, and nothing else.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from jno.lora import Net
from jno_lora_conditional import Conditional, Powers, at
from jno_lora_uncertainty import Ensemble, calibrate_fit, fit_interval, folds

from .._pages import DOCS, fill
from .._solvers import korteweg_de_vries

POINTS, SIMULATIONS, QUERIES, SEEDS = 32, 16, 64, 4


class Problem(NamedTuple):
    """An equation with one parameter, and the true values of the queries.

    - `simulate`: `simulate(key, number, value)` gives fields and solutions.
    - `unit`: of the basis, about the distance from the source to the farthest training value.
    """

    simulate: Callable[[Array, int, Any], tuple[Array, Array]]
    source: float
    unit: float
    training: tuple[float, ...]
    queries: tuple[float, ...]
    depth: int
    steps: int  # of the pretraining


def heat(key: Array, number: int, nu: Any) -> tuple[Array, Array]:
    """Random fields and their solutions of `u_t = nu u_xx`, as in docs/conditional.md."""
    k = jnp.arange(1.0, 5.0)
    angle = k[:, None] * jnp.linspace(0, 2 * jnp.pi, POINTS, endpoint=False)[None]
    waves = jnp.concatenate([jnp.cos(angle), jnp.sin(angle)])
    sizes = jax.random.normal(key, (number, 8))
    return sizes @ waves, (sizes * jnp.tile(jnp.exp(-nu * k**2), 2)[None]) @ waves


def waves(key: Array, number: int, nu: Any) -> tuple[Array, Array]:
    """Random fields and their solutions of `u_t + u u_x + 4 nu u_xxx = 0` (Korteweg-de Vries)."""
    k = jnp.arange(POINTS // 2 + 1.0)
    size = jnp.where((k > 0) & (k < 4), jnp.exp(-0.3 * k), 0.0)[None]
    real, imaginary = jax.random.normal(key, (2, number, len(k)))
    fields = POINTS / 4 * jnp.fft.irfft((real + 1j * imaginary) * size, POINTS)
    return fields, korteweg_de_vries(fields, dispersion=4 * nu, steps=200)


PROBLEMS = {
    "heat": Problem(
        *(heat, 0.1, 0.07, (0.08, 0.06, 0.045, 0.03)),
        queries=(0.12, 0.1, 0.095, 0.085, 0.05, 0.035, 0.028, 0.022),
        depth=1,
        steps=600,
    ),
    "KdV": Problem(
        *(waves, 0.05, 0.013, (0.047, 0.044, 0.0405, 0.037)),
        queries=(0.053, 0.05, 0.0495, 0.0485, 0.042, 0.039, 0.036, 0.034),
        depth=2,
        steps=1500,
    ),
}


def error(model: Any, pair: tuple[Array, Array]) -> Array:
    """The relative mean square error of one simulation."""
    field, solution = pair
    return jnp.mean((model(field) - solution) ** 2) / jnp.mean(solution**2)


def trained(tree: Any, loss: Callable[[Any], Array], steps: int) -> Any:
    """The trained arrays, by Adam with a rate that decays to zero."""
    optimiser = optax.adam(optax.cosine_decay_schedule(1e-2, steps))

    def step(carry: Any, _: None) -> Any:
        tree, state = carry
        updates, state = optimiser.update(jax.grad(loss)(tree), state)
        return (optax.apply_updates(tree, updates), state), None

    run = jax.jit(lambda carry: jax.lax.scan(step, carry, length=steps)[0][0])
    return run((tree, optimiser.init(tree)))


def mean_error(model: Any, pairs: tuple[Array, Array]) -> Array:
    """The root mean square of the errors."""
    return jnp.sqrt(jnp.mean(jax.vmap(functools.partial(error, model))(pairs)))


def adapted(problem: Problem, model: Any, seed: int, steps: int) -> Any:
    """The calibrated fits of four adapters."""
    nus = jnp.asarray(problem.training)
    keys = jax.random.split(jax.random.key(20 + seed), len(nus))
    data = jax.vmap(lambda key, nu: problem.simulate(key, SIMULATIONS, nu))(keys, nus)
    values = jnp.repeat(nus, SIMULATIONS)
    pairs = jax.tree.map(lambda x: x.reshape(-1, POINTS), data)
    parts = folds(values=values)

    def make(key: Array) -> Conditional:
        net = Net(model, key=key).freeze().lora(rank=4)
        return Conditional(net, Powers(problem.source, problem.unit))

    def loss(conditional: Conditional, batch: Any) -> Array:
        values, pairs = batch
        errors = jax.vmap(lambda nu, pair: error(at(conditional, nu), pair))(values, pairs)
        return jnp.sqrt(jnp.mean(errors))

    ensemble = Ensemble(make, len(nus), key=jax.random.key(seed))
    batch = parts.training((values, pairs))
    trainable, frozen = ensemble.partition()
    trainable = trained(
        trainable, lambda tree: Ensemble.loss(loss)(eqx.combine(tree, frozen), batch), steps
    )
    grid = jnp.linspace(0.9 * min(problem.queries), 1.1 * max(problem.queries), 9)
    ensemble = ensemble.update(trainable)
    return calibrate_fit(ensemble, error, pairs, values, parts, grid, steps=10, coordinate="log")


def measured(problem: Problem, seeds: int, steps: int) -> dict[float, np.ndarray]:
    """By true value, for each query: does the interval hold, and is it flagged, before and now?"""
    model = eqx.nn.MLP(POINTS, POINTS, 64, problem.depth, jnp.tanh, key=jax.random.key(0))
    many = problem.simulate(jax.random.key(1), 512, problem.source)
    arrays, static = eqx.partition(model, eqx.is_inexact_array)
    arrays = trained(
        arrays, lambda tree: mean_error(eqx.combine(tree, static), many), steps or problem.steps
    )
    model = eqx.combine(arrays, static)
    rows: dict[float, list[np.ndarray]] = {nu: [] for nu in problem.queries}
    for seed in range(seeds):
        calibration = adapted(problem, model, seed, steps or 300)
        fits = jax.jit(jax.vmap(lambda data, c=calibration: fit_interval(c, data)))
        for number, nu in enumerate(problem.queries):
            fitted = fits(problem.simulate(jax.random.key(99 + number), QUERIES, nu))
            holds = (fitted.lower <= nu) & (nu <= fitted.upper)
            low, high = min(problem.training), max(problem.training)
            before = (fitted.z < low) | (fitted.z > high)
            rows[nu].append(np.stack([holds, before, fitted.is_outside]))
        jax.clear_caches()
    return {nu: np.concatenate(found, axis=1) for nu, found in rows.items()}


def table(seeds: int = SEEDS, steps: int = 0) -> str:
    """The table for the page. `steps` of all trainings, instead of the study's."""
    head = ("problem", "true value", "", "holds", "flagged, before", "flagged")
    head += ("of the others, holds, before", "of the others, holds")
    lines = [head, ("---",) * len(head)]
    for name, problem in PROBLEMS.items():
        for nu, (holds, *flags) in measured(problem, seeds, steps).items():
            known = (*problem.training, problem.source)
            where = "source" if nu == problem.source else "inside"
            where = where if min(known) <= nu <= max(known) else "outside"
            shares = [holds, *flags]
            shown = [f"{100 * np.mean(share):.0f} %" for share in shares]
            shown += [f"{100 * np.mean(holds[~f]):.0f} %" if np.any(~f) else "-" for f in flags]
            lines.append((name, f"{nu:g}", where, *shown))
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


if __name__ == "__main__":
    fill(DOCS / "uncertainty.md", {"fits": table()})
