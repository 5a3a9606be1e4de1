"""The adapters of a file that are those of one stack of layers here."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from jno.lora.extending import bullets

from ._layouts import Shape
from ._module import Converted
from ._names import show_index
from ._updates import MisfitError


def check_stack(slices: Mapping[Shape, Converted], stack: Shape) -> None:
    """**Raises:** `MisfitError` unless each layer of the stack has an adapter, all of one scale."""
    wanted = list(np.ndindex(*stack))
    if not stack and list(slices) != wanted:
        raise MisfitError("the model has one layer there, not a stack with an index")
    lines = [f"{show_index(index)}: not in the file" for index in wanted if index not in slices]
    lines += [f"{show_index(index)}: not in the model" for index in slices if index not in wanted]
    if lines:
        raise MisfitError(
            f"the model has a stack of {' x '.join(map(str, stack))} layers there. Each must be in "
            f"the file, and needs an index by `rename`, such as '[{show_index(wanted[0])}]':\n"
            f"{bullets(lines, 4)}"
        )
    scales = sorted({(one.rank, one.alpha) for one in slices.values()})
    if len(scales) > 1:
        shown = ", ".join(f"rank {rank} with alpha {alpha:g}" for rank, alpha in scales)
        raise MisfitError(f"the layers of a stack need one rank and alpha, but these have {shown}")


def stacked(slices: list[Mapping[str, np.ndarray]], stack: Shape) -> dict[str, np.ndarray]:
    """The arrays of the layers of a stack, in its order, as arrays of the stack."""
    return {
        name: np.stack([one[name] for one in slices]).reshape((*stack, *slices[0][name].shape))
        for name in slices[0]
    }


def on_device(arrays: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """The arrays as JAX holds them: 64-bit numbers in 32 bits, unless told otherwise."""
    return {
        name: jnp.asarray(value, jax.dtypes.canonicalize_dtype(value.dtype))
        for name, value in arrays.items()
    }
