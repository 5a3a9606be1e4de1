"""Statistics of a layer's data, which an adapter class may ask for: see `MatrixAdapter.needs`."""

from typing import ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree


class Statistic:
    """The mean of `left(V)^T right(V)` for rows `V`, which `collect_statistics` takes over batches.

    The rows, `(n, width)`, are the vectors that the layer's matrix multiplies (`of = "inputs"`:
    `width` is `in`) or outputs (`"outputs"`: `out`), in float32 at least. Each example of a batch,
    and each position of a convolution, gives a row. The mean is over all rows.

    With `of = "gradient"`, `V` is the gradient `(out, in)` of the loss by the matrix, and
    `collect_statistics` takes the mean of `right(V)` over the batches.

    A subclass gives a `name` and the maps that it needs. An adapter class lists the subclass in
    `needs`. The constructor gets the array by `name`. `Statistics` store the array by
    `"package.name"`, with the first package of the subclass's module, so that two plugins may use
    the same name.
    """

    name: ClassVar[str]
    of: ClassVar[Literal["inputs", "outputs", "gradient"]] = "inputs"
    # Whether `left` and `right` are the same map, so that a sketch can replace the mean.
    is_covariance: ClassVar[bool] = False

    @staticmethod
    def left(V: Float[Array, "n width"]) -> Float[Array, "n k"]:
        """The rows of the left factor. By default `V`."""
        return V

    @staticmethod
    def right(V: Float[Array, "n width"]) -> Float[Array, "n m"]:
        """The rows of the right factor. By default `V`."""
        return V

    @staticmethod
    def value(mean: Float[Array, "k m"]) -> Array:
        """The array that the adapter's constructor gets. By default the mean."""
        return mean


class InputCovariance(Statistic):
    """`(in, in)`: the mean of `x x^T`, not centred."""

    name = "input_covariance"
    is_covariance = True


class InputMean(Statistic):
    """`(in,)`: the mean of `x`."""

    name = "input_mean"

    @staticmethod
    def left(V: Array) -> Array:
        return jnp.ones((V.shape[0], 1), V.dtype)

    @staticmethod
    def value(mean: Array) -> Array:
        return mean[0]


class OutputCovariance(Statistic):
    """`(out, out)`: the mean of `y y^T` for the layer's outputs, not centred."""

    name = "output_covariance"
    of = "outputs"
    is_covariance = True


class Gradient(Statistic):
    """`(out, in)`: the mean over the batches of the gradient of the loss by the matrix."""

    name = "gradient"
    of = "gradient"


BUILT_IN: dict[str, type[Statistic]] = {
    statistic.name: statistic
    for statistic in (InputCovariance, InputMean, OutputCovariance, Gradient)
}


def statistic_key(statistic: type[Statistic]) -> str:
    """The key in `Statistics`: `"package.name"`, or the name alone of a built-in statistic."""
    if BUILT_IN.get(statistic.name) is statistic:
        return statistic.name
    return f"{statistic.__module__.partition('.')[0]}.{statistic.name}"


def statistics_of(cls: type) -> tuple[type[Statistic], ...]:
    """The statistics that an adapter class needs."""
    needs = getattr(cls, "needs", ())
    return tuple(BUILT_IN[need] if isinstance(need, str) else need for need in needs)


def statistic_keys(cls: type) -> dict[str, str]:
    """The key in `Statistics` of each name by which the constructor of `cls` gets a statistic."""
    return {statistic.name: statistic_key(statistic) for statistic in statistics_of(cls)}


def mean_shape(statistic: type[Statistic], shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the mean for a matrix of this shape."""
    if statistic.of == "gradient":
        rows = jax.ShapeDtypeStruct(shape, jnp.float32)
        return jax.eval_shape(statistic.right, rows).shape
    width = shape[1] if statistic.of == "inputs" else shape[0]
    rows = jax.ShapeDtypeStruct((1, width), jnp.float32)
    return jax.eval_shape(lambda V: statistic.left(V).T @ statistic.right(V), rows).shape


def zero_statistics(cls: type, layer: PyTree) -> dict[str, Array] | None:
    """The statistics of a `layer` whose data are zeros. `None` if `cls` needs no statistics."""
    statistics = statistics_of(cls)
    if not statistics:
        return None
    shape = eqx.filter_eval_shape(cls.matrix, layer).shape
    return {
        statistic.name: statistic.value(jnp.zeros(mean_shape(statistic, shape), jnp.float32))
        for statistic in statistics
    }
