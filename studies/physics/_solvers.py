"""Levenberg-Marquardt of optimistix, and Adam of optax, on a residual per point."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import optimistix

Residual = Callable[[Any, Any, Any], Any]  # of `trainable, frozen, point`


class Solved(NamedTuple):
    """Trained arrays, steps that were tried and accepted, seconds of the processor, bytes.

    The bytes are temporary memory.
    """

    trainable: Any
    steps: Any
    accepted: Any
    seconds: float
    temporary: int


def vector(residual: Residual) -> Callable[[Any, Any], Any]:
    """All residuals as `f(trainable, (frozen, points))`, with a fast derivative.

    A residual of a point depends on no other point, so its gradient is a row of the Jacobian:
    `vmap` computes all rows for the price of one gradient of all points. Forward mode would take a
    pass for each trained number, and reverse mode a pass over all points for each residual.
    """

    def plain(trainable: Any, frozen: Any, points: Any) -> Any:
        return jax.vmap(lambda point: residual(trainable, frozen, point))(points)

    fast = eqx.filter_custom_jvp(plain)

    @fast.def_jvp
    def _(primals: Any, tangents: Any) -> Any:
        trainable, frozen, points = primals
        rows = jax.vmap(lambda point: jax.grad(residual)(trainable, frozen, point))(points)
        moved = jax.tree.map(lambda row, t: jnp.tensordot(row, t, t.ndim), rows, tangents[0])
        return plain(*primals), sum(jax.tree.leaves(moved))

    return lambda trainable, args: fast(trainable, *args)


def plain_vector(residual: Residual) -> Callable[[Any, Any], Any]:
    """All residuals, with the derivative that JAX and optimistix make of them."""

    def plain(trainable: Any, args: Any) -> Any:
        frozen, points = args
        return jax.vmap(lambda point: residual(trainable, frozen, point))(points)

    return plain


class LevenbergMarquardt:
    """Compiled runs of a way, of at most `steps` steps. A shape of the points compiles once.

    **Arguments:** `jac`: the mode of optimistix's own Jacobian, in the place of `vector`.
    """

    def __init__(self, residual: Residual, steps: int, jac: str | None = None):
        self.residual, self.steps, self.jac = residual, steps, jac
        self.compiled: dict[Any, Any] = {}

    def __call__(self, trainable: Any, frozen: Any, points: Any, *arguments: Any) -> Solved:
        """Run from `trainable` on points `(n, 1 + d)`."""
        arrays, static = eqx.partition(frozen, eqx.is_array)
        arguments = (trainable, arrays, points, *arguments)
        if points.shape not in self.compiled:

            def run(trainable: Any, arrays: Any, *arguments: Any) -> Any:
                return self._run(trainable, eqx.combine(arrays, static), *arguments)

            self.compiled[points.shape] = jax.jit(run).lower(*arguments).compile()
        compiled = self.compiled[points.shape]
        begin = time.process_time()
        value, steps, accepted = jax.block_until_ready(compiled(*arguments))
        seconds = time.process_time() - begin
        temporary = compiled.memory_analysis().temp_size_in_bytes
        return Solved(value, steps, accepted, seconds, temporary)

    def _run(self, trainable: Any, frozen: Any, points: Any, *arguments: Any) -> Any:
        function = vector(self.residual) if self.jac is None else plain_vector(self.residual)
        solution = optimistix.least_squares(
            function,
            optimistix.LevenbergMarquardt(rtol=1e-10, atol=1e-12),
            trainable,
            args=(frozen, points),
            options={} if self.jac is None else {"jac": self.jac},
            max_steps=self.steps,
            throw=False,
        )
        return solution.value, solution.stats["num_steps"], solution.state.num_accepted_steps


class Adam(LevenbergMarquardt):
    """Adam with a cosine decay, on the mean square. Calls have two more arguments.

    These are the rate, and a tree of factors of the rate in the form of `trainable`.
    """

    def _run(self, trainable: Any, frozen: Any, points: Any, *arguments: Any) -> Any:
        rate, scale = arguments
        adam, decay = optax.scale_by_adam(), optax.cosine_decay_schedule(1.0, self.steps)
        function = plain_vector(self.residual)
        gradient = jax.grad(lambda t: jnp.mean(function(t, (frozen, points)) ** 2))

        def step(index: Any, carry: Any) -> Any:
            trainable, state = carry
            updates, state = adam.update(gradient(trainable), state)
            factor = -rate * decay(index)
            moved = jax.tree.map(lambda x, s, u: x + factor * s * u, trainable, scale, updates)
            return moved, state

        start = (trainable, adam.init(trainable))
        trainable = jax.lax.fori_loop(0, self.steps, step, start)[0]
        return trainable, jnp.asarray(self.steps), jnp.asarray(self.steps)
