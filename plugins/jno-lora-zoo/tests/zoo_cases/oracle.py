"""An adapted layer in double precision against NumPy: values, and every single derivative.

Nothing is shared with what is tested but the adapter's arrays (of VeRA and RandLoRA also the two
matrices that they draw), so that the bounds can be those of double precision.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jno.lora import lora_trainable_filter

from .adapters import made, perturb
from .laws import (
    adapted_bias,
    array_of,
    effective_rank,
    fields_of,
    parameter_count,
    reference,
    triplets,
)
from .layers import called, matrix_of
from .tools import assert_close, cast_floats, central_difference

ALPHA = 3.0
GRADIENT = 1e-7
VALUE = 1e-12


class Oracle:
    """One adapter, and what NumPy says of it. `check` compares everything.

    **Arguments:**

    - `method`, `cls`: the name of the law, and the adapter.
    - `layer`, `rank`: what is adapted, in any precision.
    - `arguments`: what the layer is called with, trees of NumPy arrays.
    - `output(layer, W, at, *arguments)`: what the layer computes, in NumPy, with the matrix `W`;
        see `maps.output`.
    - `matrix`: reads the `(out, in)` matrix of a layer.
    - `call`: how the layer is called.
    """

    def __init__(
        self,
        method: str,
        cls: Any,
        layer: Any,
        rank: int,
        arguments: tuple[Any, ...],
        output: Callable[..., Any],
        *,
        matrix: Callable[[Any], np.ndarray] = matrix_of,
        call: Callable[..., Any] = called,
    ):
        with jax.enable_x64(True):
            layer = cast_floats(layer, jnp.float64)
            fresh = made(cls, layer, rank, ALPHA, key=jax.random.key(11))
            wrapper = perturb(fresh)
            on_device = jax.tree.map(jnp.asarray, arguments)
            shapes = eqx.filter_eval_shape(call, wrapper, *on_device)
            rng = np.random.default_rng(3)
            weights = jax.tree.map(lambda y: rng.normal(size=y.shape), shapes)
            weights_on_device = jax.tree.map(jnp.asarray, weights)
            computed = _computed(call, fresh, wrapper, on_device, weights_on_device)
            arrays, static = eqx.partition(computed, eqx.is_array)
            computed = eqx.combine(jax.device_get(arrays), static)
            self._start, self._output, merged, self._gradients = computed
            assert jax.tree.structure(merged) == jax.tree.structure(layer)
            self._fields = vars(fields_of(wrapper))
            W = matrix(layer)
        assert all(x.dtype == np.float64 for x in jax.tree.leaves((self._output, shapes)))
        self._layer, self._W, self._merged = layer, W, merged
        self._matrix, self._to_numpy = matrix, output
        self._method, self._arguments, self._weights = method, arguments, weights
        self._names, self._rank, self._rank_in_use = cls.adapter_fields, rank, wrapper.rank

    def check(self) -> None:
        """The adapter starts as its layer; trained, it is the law in values and derivatives."""
        self.check_start()
        self.check_merged()
        self.check_output()
        self.check_derivatives()

    def check_start(self) -> None:
        """The fresh adapter computes what the loops do with the layer's own weight.

        As many numbers train as the documentation says.
        """
        expected = self._to_numpy(self._layer, self._W, self._W, *self._arguments)
        _require_close(self._start, expected)
        assert self._rank_in_use == effective_rank(self._method, self._rank, *self._W.shape)
        size = sum(self._fields[name].size for name in self._names)
        assert size == parameter_count(self._method, self._rank, *self._W.shape)

    def check_merged(self) -> None:
        """The merged weight and bias are the law; LoRA-XS's frozen factors are of the weight."""
        W = self._matrix(self._merged)
        assert_close(W, self._law(self._fields), VALUE)
        _require_close(_bias_of(self._merged), _bias_of(self._adapted(self._fields)))
        # Something moved, unless a single output or input is turned, which is the identity. (PSOFT
        # then trains two numbers, which move less.)
        outputs, inputs = W.shape
        turned = {"OFT": outputs, "OFTIn": inputs, "HRA": inputs, "PSOFT": min(W.shape)}
        if turned.get(self._method) != 1:
            assert np.max(np.abs(W - self._W)) > 1e-2
        if self._method == "LoRAXS":
            A, B = self._fields["lora_A"], self._fields["lora_B"]
            assert_close(B @ A, triplets(self._W, slice(0, len(A))), VALUE)

    def check_output(self) -> None:
        """The wrapped layer computes what the loops do with the law."""
        W, layer = self._law(self._fields), self._adapted(self._fields)
        _require_close(self._output, self._to_numpy(layer, W, W, *self._arguments))

    def check_derivatives(self) -> None:
        """Every derivative, of the wrapped and of the merged layer, is a central difference.

        Of `sum(weights * sin(y))`, in each of the adapter's arrays and in each input. In the
        arrays by the chain rule, through the matrix and the bias, which are few numbers.
        """
        at, layer = self._law(self._fields), self._adapted(self._fields)
        inputs, treedef = jax.tree.flatten(self._arguments)
        moving = {n: x for n, x in enumerate(inputs) if x.dtype == np.float64} | {"W": at}
        if _bias_of(layer) is not None:
            moving["b"] = np.asarray(_bias_of(layer))

        def loss(values):
            arguments = [values.get(n, x) for n, x in enumerate(inputs)]
            changed = _with_bias(layer, values["b"]) if "b" in values else layer
            y = self._to_numpy(changed, values["W"], at, *jax.tree.unflatten(treedef, arguments))
            terms = jax.tree.map(lambda w, y: np.sum(w * np.sin(y)), self._weights, y)
            return sum(jax.tree.leaves(terms))

        by = _differences(loss, moving)
        by_W, by_b = by.pop("W"), by.pop("b", None)
        constant = {}
        if self._method == "DoRA":  # takes the row norm for constant (section 4.3)
            ones = np.ones(len(at))
            V = self._law({**self._fields, "magnitude": ones, "norm": ones})
            constant["norm"] = np.linalg.norm(V, axis=1)

        def pulled_back(trained):
            fields = {**self._fields, **constant, **trained}
            by_bias = 0 if by_b is None else np.sum(by_b * _bias_of(self._adapted(fields)))
            return np.sum(by_W * self._law(fields)) + by_bias

        trained = {name: self._fields[name] for name in self._names}
        by_field = _differences(pulled_back, trained)
        expected = by_field | by
        largest = max(np.max(np.abs(gradient), initial=0) for gradient in expected.values())
        for fields, arguments in self._gradients:
            actual = {name: array_of(fields, name) for name in by_field}
            actual |= zip(by, jax.tree.leaves(arguments), strict=True)
            for name, gradient in expected.items():
                # Fields without effect have differences of rounding.
                scale = max(np.max(np.abs(gradient), initial=0), 1e-2 * largest)
                assert_close(actual[name], gradient, GRADIENT, scale=scale)

    def _law(self, fields: dict[str, Any]) -> np.ndarray:
        return reference(self._method, SimpleNamespace(**fields), self._W, self._rank, ALPHA)

    def _adapted(self, fields: dict[str, Any]) -> Any:
        """The layer with the bias that the method gives it."""
        return adapted_bias(self._method, SimpleNamespace(**fields), self._layer)


def _require_close(actual: Any, expected: Any) -> None:
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert_close(one, other, VALUE)


def _bias_of(layer: Any) -> Any:
    return getattr(getattr(layer, "layer", layer), "bias", None)


def _with_bias(layer: Any, bias: np.ndarray) -> Any:
    return eqx.tree_at(_bias_of, layer, bias)


def _differences(function: Callable[[Any], Any], arrays: dict[Any, np.ndarray]) -> Any:
    """The derivative of a number by every entry of each of these arrays."""
    return {
        name: central_difference(lambda x, name=name: function({**arrays, name: x}), array)
        for name, array in arrays.items()
    }


@eqx.filter_jit
def _computed(
    call: Callable[..., Any], fresh: Any, wrapper: Any, arguments: Any, weights: Any
) -> Any:
    """The outputs at the start and after training, the merged layer, and the gradients.

    The gradients of `sum(weights * sin(y))`, of the wrapped and of the merged layer.
    """
    trainable, frozen = eqx.partition(wrapper, lora_trainable_filter(wrapper))
    inputs, others = eqx.partition(arguments, eqx.is_inexact_array)

    def loss(moving, merged):
        trainable, inputs = moving
        wrapper = eqx.combine(trainable, frozen)
        y = call(wrapper.merge() if merged else wrapper, *eqx.combine(inputs, others))
        terms = jax.tree.map(lambda w, y: jnp.sum(w * jnp.sin(y)), weights, y)
        return sum(jax.tree.leaves(terms)), y

    by_layer, y = jax.grad(loss, has_aux=True)((trainable, inputs), False)
    by_merged, _ = jax.grad(loss, has_aux=True)((trainable, inputs), True)
    return call(fresh, *arguments), y, wrapper.merge(), (by_layer, by_merged)
