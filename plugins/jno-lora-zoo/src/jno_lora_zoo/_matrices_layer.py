"""Kinds of layer with several matrices."""

import abc
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import equinox as eqx
import jax
from jaxtyping import Array, Float

from ._arrays import in_compute_dtype
from ._layer_kind import KindOfLayer
from ._weighted import with_attributes

# The side of the matrix along each axis of a statistic.
_SIDES = {
    "input_covariance": ("in", "in"),
    "input_mean": ("in",),
    "output_covariance": ("out", "out"),
    "gradient": ("out", "in"),
}


class MatricesLayer(KindOfLayer):
    """A kind of layer with several matrices, which it can read and replace as linear layers.

    A subclass defines which layers are of its kind (`fits`), `linear_layers` and
    `with_linear_layers`. From it, `adapters_for` makes an adapter for each method of the zoo, and
    `per_matrix` one by hand: `class LoRAPair(per_matrix(LoRA), PairLayer): ...`. The adapter has
    the fields of the method, each a dict with the array of each matrix, and treats each matrix as
    the method treats a linear layer. A matrix may have leading axes, whose slices are adapted
    separately (`matrices` of the contract).

    All other members are optional: `stack_ndim` for stacks, `computes` and `call` for a fast path,
    and for methods that start from data `inputs_of` and `outputs_of`, which return the vectors of
    all matrices side by side, and `gradient_factors`.
    """

    # Whether an adapter has arrays for all matrices. If not, its constructor chooses some.
    adapts_all: ClassVar[bool] = True

    base: Any

    @classmethod
    @abc.abstractmethod
    def linear_layers(cls, layer: Any) -> Mapping[str, eqx.nn.Linear]:
        """The matrices of one plain `layer` by name, and its biases.

        If the layer does not consist of linear layers, `linear_layer` makes them. Weights are then
        float32 at least, perhaps with axes in front of the matrix.
        """

    @classmethod
    @abc.abstractmethod
    def with_linear_layers(cls, base: Any, linears: Mapping[str, eqx.nn.Linear]) -> eqx.Module:
        """`base` with some linear layers replaced, up to the rounding of its dtypes."""

    def computes(self, *args: Any, **kwargs: Any) -> bool:
        """Whether `call` with the plain linear layers computes `base(*args, **kwargs)`."""
        return False

    def call(self, products: Mapping[str, Callable[[Array], Array]], *args: Any) -> Any:
        """The output of the layer with its matrices replaced by other linear maps.

        It also gets the keywords of the call, if `computes` is true for any.

        - `products`: by name, the map of a vector `(in,)` to a vector `(out,)`, with the bias.
        """
        raise NotImplementedError

    @classmethod
    def gradient_factors(cls, layer: Any) -> Mapping[str, float]:
        """By name, the ratio of a matrix's gradient to `matrices(layer gradient)`, if not 1."""
        return {}

    # The members of the contract follow from the members above.

    @classmethod
    def matrices(cls, layer: Any) -> dict[str, Float[Array, "*modes _ _"]]:
        linears = cls.linear_layers(layer)
        return {name: in_compute_dtype(linear.weight) for name, linear in linears.items()}

    @classmethod
    def matrix(cls, layer: Any) -> Float[Array, "out in"] | None:
        """For methods with `needs`: one block-diagonal matrix of all matrices."""
        if not cls.needs:
            return None
        return jax.scipy.linalg.block_diag(*cls.matrices(layer).values())

    @classmethod
    def statistics_by_matrix(
        cls, layer: eqx.Module, statistics: Mapping[str, Array]
    ) -> dict[str, dict[str, Array]]:
        """The statistics of each matrix by name, which are blocks of the statistics of `matrix`.

        **Raises:** `KeyError` for statistics that are not built in, whose blocks are not known.
        """
        blocks: dict[str, dict[str, Array]] = {}
        factors = cls.gradient_factors(layer)
        outputs = inputs = 0
        for name, W in cls.matrices(layer).items():
            block = {
                "out": slice(outputs, outputs + W.shape[-2]),
                "in": slice(inputs, inputs + W.shape[-1]),
            }
            outputs, inputs = block["out"].stop, block["in"].stop
            blocks[name] = {
                need: array[tuple(block[side] for side in _SIDES[need])]
                for need, array in statistics.items()
            }
            if "gradient" in blocks[name]:
                blocks[name]["gradient"] = factors.get(name, 1.0) * blocks[name]["gradient"]
        return blocks


def linear_layer(
    W: Float[Array, "*modes out in"], bias: Float[Array, "*modes out"] | None = None
) -> eqx.nn.Linear:
    """A linear layer with this matrix; mode axes in front are treated like a stack."""
    sizes = {"in_features": W.shape[-1], "out_features": W.shape[-2]}
    arrays = {"weight": W, "bias": bias, "use_bias": bias is not None}
    return with_attributes(object.__new__(eqx.nn.Linear), {**sizes, **arrays})
