"""The layers of a stack: one adapter for each in a file, one for all of them here."""

from collections.abc import Mapping

import numpy as np

from .._paths import bullets
from ._arrays import Index, show_index
from ._held import Held


def stack_problem(slices: Mapping[Index, Held], stack: Index) -> str | None:
    """Why these are not the adapters of all layers of a stack (of one layer, without a stack)."""
    wanted = list(np.ndindex(*stack))
    if not stack and list(slices) != wanted:
        return "the model has one layer there, no stack with an index"
    lines = [f"{show_index(index)}: not in the file" for index in wanted if index not in slices]
    lines += [f"{show_index(index)}: not in the model" for index in slices if index not in wanted]
    if lines:
        return (
            f"the model has a stack of {' x '.join(map(str, stack))} layers there, of which each "
            f"must be in the file and needs an index by `rename`, such as "
            f"'[{show_index(wanted[0])}]':\n{bullets(lines, 4)}"
        )
    forms = sorted({(one.rank, one.alpha) for one in slices.values()})
    if len(forms) > 1:
        shown = ", ".join(f"rank {rank} with alpha {alpha:g}" for rank, alpha in forms)
        return f"the layers of a stack need one rank and alpha, but these have {shown}"
    return None


def stacked(slices: list[Mapping[str, np.ndarray]], stack: Index) -> dict[str, np.ndarray]:
    """The arrays of the layers of a stack, in its order, as arrays of the stack."""
    return {
        name: np.stack([one[name] for one in slices]).reshape(*stack, *slices[0][name].shape)
        for name in slices[0]
    }
