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
from .laws import adapted_bias, array_of, fields_of, reference, triplets
from .layers import matrix_of
from .tools import assert_close, cast_floats, central_difference

ALPHA = 3.0
GRADIENT = 1e-7
VALUE = 1e-12


def _called(layer: Any, *arguments: Any) -> Any:
    return layer(*arguments)


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
        call: Callable[..., Any] = _called,
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
            fields = vars(fields_of(wrapper))
            fields.pop("multiplier", None)
            W = matrix(layer)
            if hasattr(wrapper, "seed") and hasattr(wrapper, "projections"):
                fields["A"], fields["B"] = map(np.asarray, wrapper.projections(jnp.zeros(W.shape)))
        assert all(x.dtype == np.float64 for x in jax.tree.leaves((self._output, shapes)))
        self._W = W
        self._merged, self._fields = matrix(merged), fields
        self._method, self._arguments, self._weights = method, arguments, weights
        self._names = cls.adapter_fields
        self._law = lambda fields: reference(method, SimpleNamespace(**fields), W, rank, ALPHA)
        self._base = lambda: output(layer, W, W, *arguments)
        self._loops = lambda fields, *arguments: output(
            adapted_bias(method, SimpleNamespace(**fields), layer), *arguments
        )

    def check(self) -> None:
        """The adapter starts as its layer; trained, it is the law in values and derivatives."""
        self.check_start()
        self.check_merged()
        self.check_output()
        self.check_derivatives()

    def check_start(self) -> None:
        """The fresh adapter computes what the loops do with the layer's own weight."""
        self._require_outputs(self._start, self._base())

    def _require_outputs(self, actual: Any, expected: Any) -> None:
        leaves = jax.tree.leaves(actual), jax.tree.leaves(expected)
        for one, other in zip(*leaves, strict=True):
            assert_close(one, other, VALUE)

    def check_merged(self) -> None:
        """The merged weight is the law, and LoRA-XS's frozen factors are of the weight."""
        assert_close(self._merged, self._law(self._fields), VALUE)
        # Something moved. (Blocks of one are not rotations: OFT of one output is the identity.)
        if (self._method, len(self._W)) != ("OFT", 1):
            assert np.max(np.abs(self._merged - self._W)) > 1e-2
        if self._method == "LoRAXS":
            A, B = self._fields["lora_A"], self._fields["lora_B"]
            assert_close(B @ A, triplets(self._W, slice(0, len(A))), VALUE)

    def check_output(self) -> None:
        """The wrapped layer computes what the loops do with the law."""
        W = self._law(self._fields)
        self._require_outputs(self._output, self._loops(self._fields, W, W, *self._arguments))

    def check_derivatives(self) -> None:
        """Every derivative, of the wrapped and of the merged layer, is a central difference.

        Of `sum(weights * sin(y))`, in each of the adapter's arrays and in each input.
        """
        at = self._law(self._fields)
        constant = {}
        if self._method == "DoRA":  # takes the row norm for constant (section 4.3)
            ones = np.ones(len(at))
            V = self._law({**self._fields, "magnitude": ones, "norm": ones})
            constant["norm"] = np.linalg.norm(V, axis=1)
        inputs, treedef = jax.tree.flatten(self._arguments)
        trained = {name: self._fields[name] for name in self._names}
        moving = trained | {n: x for n, x in enumerate(inputs) if x.dtype == np.float64}

        def loss(moving):
            fields = {name: array for name, array in moving.items() if name in trained}
            arguments = [moving.get(n, x) for n, x in enumerate(inputs)]
            fields = {**self._fields, **constant, **fields}
            y = self._loops(fields, self._law(fields), at, *jax.tree.unflatten(treedef, arguments))
            terms = jax.tree.map(lambda w, y: np.sum(w * np.sin(y)), self._weights, y)
            return sum(jax.tree.leaves(terms))

        expected = {
            name: central_difference(lambda x, name=name: loss({**moving, name: x}), array)
            for name, array in moving.items()
        }
        largest = max(np.max(np.abs(gradient)) for gradient in expected.values())
        for fields, arguments in self._gradients:
            actual = {name: array_of(fields, name) for name in trained}
            others = [name for name in moving if name not in trained]
            actual |= zip(others, jax.tree.leaves(arguments), strict=True)
            for name, gradient in expected.items():
                # Fields without effect have differences of rounding.
                scale = max(np.max(np.abs(gradient)), 1e-2 * largest)
                assert_close(actual[name], gradient, GRADIENT, scale=scale)


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
