"""PEFT's settings for rotations of blocks of inputs."""

from .._errors import MisfitError
from ._type import Modules


def block_settings(modules: Modules, size_name: str, count_name: str) -> dict[str, int]:
    """The size and the number of blocks, one of them 0. **Raises:** `MisfitError`."""
    sizes = {written.rank for written in modules.values()}
    counts = {written.adapter.layout.inputs // written.rank for written in modules.values()}
    if len(sizes) == 1:
        return {size_name: sizes.pop(), count_name: 0}
    if len(counts) == 1:
        return {size_name: 0, count_name: counts.pop()}
    raise MisfitError(
        f"PEFT has one size or one number of blocks for all layers, and these have the sizes "
        f"{sorted(sizes)}"
    )
