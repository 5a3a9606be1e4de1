"""RegMean: how much each set of adapters counts along each direction of a layer's inputs."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from .._errors import SelectionError
from .._paths import bullets, show_path
from ._adapter_set import AdapterSet, paths_of

_COVARIANCE = "input_covariance"


def covariances(
    sets: Sequence[AdapterSet], statistics: Sequence[Mapping[str, Mapping[str, Array]]]
) -> dict[str, list[Array]]:
    """The covariances of the inputs of each adapted layer, one for each set.

    **Raises:** `SelectionError` if the statistics are not one for each set, or lack a layer.
    """
    if isinstance(statistics, Mapping) or len(statistics) != len(sets):
        came = "one" if isinstance(statistics, Mapping) else len(statistics)
        raise SelectionError(
            f"`statistics` must be a list with one item for each of the {len(sets)} sets, got "
            f"{came}."
        )
    paths = paths_of(sets)
    missing = [
        f"{show_path(path)}, in the statistics of set {index}"
        for path in paths
        for index, layers in enumerate(statistics)
        if path not in layers or _COVARIANCE not in layers[path]
    ]
    if missing:
        raise SelectionError(
            f"These layers lack a covariance of their inputs:\n{bullets(missing)}\n"
            'Collect it: calibrate(merge_lora(model), batches, loss, wrappers="corda").'
        )
    return {path: [layers[path][_COVARIANCE] for layers in statistics] for path in paths}


def shares_of(
    covariances: Sequence[Float[Array, "*stack in in"]],
    present: Sequence[int],
    off_diagonal: float | None,
) -> list[Float[Array, "*stack in in"]]:
    """`G_i (sum_j G_j)^+` of the sets `present`. Directions without an input have no share.

    `G_i` is a covariance with the entries off its diagonal times `off_diagonal`.
    """
    factor = 0.9 if off_diagonal is None else off_diagonal
    grams = [_damped(covariance, factor) for covariance in covariances]
    total: Any = sum(grams[1:], start=grams[0])
    inverse = jnp.linalg.pinv(total, hermitian=True)
    return [grams[index] @ inverse for index in present]


def _damped(gram: Float[Array, "*stack in in"], factor: float) -> Float[Array, "*stack in in"]:
    is_diagonal = jnp.eye(gram.shape[-1], dtype=bool)
    return jnp.where(jnp.broadcast_to(is_diagonal, gram.shape), gram, factor * gram)
