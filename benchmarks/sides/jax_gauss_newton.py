"""Damped Gauss-Newton steps of networks by physics, and steps of Adam. Serves ours.

Equations, sizes and solvers are the ones of `python -m studies.physics`. The networks start from
random values, where the study starts from a trained base.
"""

from typing import Any

import jax
import jax.numpy as jnp
from studies.physics._equations import EQUATIONS
from studies.physics._solvers import Adam, LevenbergMarquardt
from studies.physics._ways import WAYS, new_network, residual_of

from ._timing import Subject, timed

SOLVERS = {"gauss-newton": LevenbergMarquardt, "adam": Adam}


def build(case: dict[str, Any], device: str) -> Subject:
    """A program that tries `case["steps"]` steps, in double precision, from the start of a way."""
    with jax.enable_x64(True):
        equation = next(e for e in EQUATIONS if e.name == case["equation"])
        way = next(way for way in WAYS if way.name == case["way"])
        base = new_network(equation.inputs, jax.random.key(0))
        trainable, frozen = way.start(base, equation, jax.random.key(1))
        values = equation.trained[-1:] if way.each else (equation.source, *equation.trained)
        number = case["points"] // len(values)
        keys = jax.random.split(jax.random.key(2), len(values))
        points = [equation.points(k, z, number) for k, z in zip(keys, values, strict=True)]
        solver = SOLVERS[case["solver"]](residual_of(way, equation), case["steps"])
        rates: tuple[Any, ...] = ()
        if case["solver"] == "adam":
            rates = jnp.asarray(1e-3), jax.tree.map(jnp.ones_like, trainable)
        arguments = (trainable, frozen, jnp.concatenate(points), *rates)

        def steps() -> Any:
            return solver(*arguments).trainable

        solved = solver(*arguments)
    if int(solved.steps) != case["steps"]:
        raise ValueError(
            f"{case['way']}: expected {case['steps']} steps, but the solver stopped after "
            f"{solved.steps}. Sides with different steps cannot be compared: take fewer steps."
        )
    facts = {
        "temp": solved.temporary,
        "trainable": sum(leaf.size for leaf in jax.tree.leaves(trainable)),
        "steps": int(solved.steps),
        "accepted": int(solved.accepted),
    }
    return Subject(facts, {"step": timed(steps, jax.block_until_ready, queue=device == "gpu")})
