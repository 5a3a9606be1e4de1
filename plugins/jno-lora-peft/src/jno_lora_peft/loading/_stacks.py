"""The adapters of a file for one stack of layers here."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jno.lora.extending import bullets

from .._errors import MisfitError
from .._names import show_index
from ..model.layouts import Shape
from ..types import Converted


def in_order(adapters: Mapping[Shape, Converted], stack: Shape) -> list[Converted]:
    """The adapters of the layers of a stack, by index.

    **Raises:** `MisfitError` unless each layer of the stack has an adapter, all of one scale.
    """
    indices = list(np.ndindex(*stack))
    if not stack and list(adapters) != indices:
        raise MisfitError("the model has one layer there, not a stack with an index")
    lines = [f"{show_index(i)}: not in the file" for i in indices if i not in adapters]
    lines += [f"{show_index(i)}: not in the model" for i in adapters if i not in indices]
    if lines:
        raise MisfitError(
            f"the model has a stack of {' x '.join(map(str, stack))} layers there. Each must be in "
            f"the file, and needs an index by `rename`, such as '[{show_index(indices[0])}]':\n"
            f"{bullets(lines, 4)}"
        )
    scales = sorted({(adapter.rank, adapter.alpha) for adapter in adapters.values()})
    if len(scales) > 1:
        shown = ", ".join(f"rank {rank} with alpha {alpha:g}" for rank, alpha in scales)
        raise MisfitError(f"the layers of a stack need one rank and alpha, but these have {shown}")
    return [adapters[index] for index in indices]


def stacked(layers: Sequence[Mapping[str, np.ndarray]], stack: Shape) -> dict[str, np.ndarray]:
    """The arrays of the layers of a stack, in its order, as arrays of the stack."""
    return {
        name: np.stack([arrays[name] for arrays in layers]).reshape((*stack, *first.shape))
        for name, first in layers[0].items()
    }


def on_device(arrays: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """The arrays as JAX holds them: 64-bit numbers in 32 bits, unless told otherwise."""
    return {
        name: jnp.asarray(value, jax.dtypes.canonicalize_dtype(value.dtype))
        for name, value in arrays.items()
    }
