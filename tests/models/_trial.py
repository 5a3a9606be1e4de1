"""A model of the matrix, and what is compiled and measured of it once for all variants."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from jno.lora import merge_lora

from ._model import Model

_JITTERS = 3


class Trial:
    """One model with its inputs, and the functions that every variant needs.

    - `plain(model)`: loss, outputs and gradient of an unadapted model of this structure.
    - `adapted(trainable, frozen)`: the same of an adapted one, with its merged form. The one
        compiled program of a case, whatever the values of the adapters.
    """

    def __init__(self, spec: Model):
        self.spec = spec
        # `unsafe_rbg` is compiled faster than the default generator.
        self.model = spec.build(jax.random.key(0, impl="unsafe_rbg"))
        self.inputs = spec.inputs(jax.random.key(1))
        self._plain = eqx.filter_jit(functools.partial(_plain, spec))
        self._adapted = eqx.filter_jit(functools.partial(_adapted, spec))
        shapes = eqx.filter_eval_shape(spec.outputs, self.model, self.inputs)
        self.targets = [jnp.zeros(out.shape, out.dtype) for out in shapes]
        _, outputs, _ = self.plain(self.model)
        # Half the size of the output away from it.
        self.targets = [
            out + 0.5 * _size(out) * jax.random.normal(jax.random.key(i), out.shape, out.dtype)
            for i, out in enumerate(outputs)
        ]
        self.outputs = outputs
        self.tolerance = self.rounding(self.model, self.outputs)

    def plain(self, model: PyTree) -> tuple[Array, list[Array], PyTree]:
        """Loss, outputs and gradient of an unadapted model."""
        return self._plain(model, self.inputs, self.targets)

    def adapted(self, trainable: PyTree, frozen: PyTree) -> tuple[Array, list[Array], PyTree, Any]:
        """Loss, outputs, gradient of the trainable part, and the merged model."""
        return self._adapted(trainable, frozen, self.inputs, self.targets)

    def rounding(self, model: PyTree, outputs: list[Array]) -> list[float]:
        """How far apart two right computations of each output may be.

        1e-5 of the output's largest entry, or ten times the model's own rounding noise if that is
        more: what the output does when every weight moves by a unit in the last place of the
        largest entry of its array. A deep model, or one that divides by small numbers, amplifies
        the rounding of its first layer; an adapter cannot be more exact than the model is.
        """
        allowed = [1e-5 * _size(out) for out in outputs]
        for seed in range(_JITTERS):
            jittered = self.plain(_jitter(model, seed))[1]
            noise = (10 * _distance(a, b) for a, b in zip(jittered, outputs, strict=True))
            allowed = list(map(max, allowed, noise))
        return allowed


def relative(tolerance: list[float], outputs: list[Array]) -> float:
    """The largest tolerance, relative to the size of its output."""
    return max(t / max(_size(out), 1e-30) for t, out in zip(tolerance, outputs, strict=True))


def apart(a: list[Array], b: list[Array], tolerance: list[float]) -> str | None:
    """Where two lists of outputs differ by more than `tolerance`, or `None`."""
    if len(a) != len(b):
        return f"{len(a)} outputs, expected {len(b)}"
    for index, (x, y, allowed) in enumerate(zip(a, b, tolerance, strict=True)):
        if x.shape != y.shape or x.dtype != y.dtype:
            return f"output {index} is {x.dtype}{x.shape}, expected {y.dtype}{y.shape}"
        distance = _distance(x, y)
        if not distance <= allowed:
            return f"output {index} is off by {distance:.1e} (allowed {allowed:.1e})"
    return None


def _plain(spec: Model, model: PyTree, inputs: Any, targets: Any) -> Any:
    arrays, rest = eqx.partition(model, eqx.is_inexact_array)
    return _value_and_grad(spec, arrays, rest, inputs, targets)


def _adapted(spec: Model, trainable: PyTree, frozen: PyTree, inputs: Any, targets: Any) -> Any:
    value, outputs, gradient = _value_and_grad(spec, trainable, frozen, inputs, targets)
    return value, outputs, gradient, merge_lora(eqx.combine(trainable, frozen))


def _value_and_grad(spec: Model, arrays: PyTree, rest: PyTree, inputs: Any, targets: Any) -> Any:
    def loss(arrays: PyTree) -> tuple[Array, list[Array]]:
        outputs = spec.outputs(eqx.combine(arrays, rest), inputs)
        errors = [jnp.mean(jnp.abs(a - b) ** 2) for a, b in zip(outputs, targets, strict=True)]
        return sum(errors, start=jnp.zeros(())), outputs

    (value, outputs), gradient = eqx.filter_value_and_grad(loss, has_aux=True)(arrays)
    return value, outputs, gradient


def _jitter(model: PyTree, seed: int) -> PyTree:
    rng = np.random.default_rng(seed)

    def move(leaf: Any) -> Any:
        if not eqx.is_inexact_array(leaf) or leaf.size == 0:
            return leaf
        array = np.asarray(leaf)
        ulp = np.finfo(array.dtype).eps * np.max(np.abs(array))
        return jnp.asarray(array + (ulp * rng.uniform(-1, 1, array.shape)).astype(array.dtype))

    return jax.tree.map(move, model)


def _distance(a: Any, b: Any) -> float:
    difference = np.abs(np.asarray(a) - np.asarray(b))
    return float(difference.max()) if difference.size else 0.0


def _size(a: Any) -> float:
    return float(np.abs(np.asarray(a)).max())
