"""The layers that PEFT has adapters of a type for."""

from .._errors import MisfitError
from ..model.layouts import Layout

CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")


def check_layer(layout: Layout, kinds: tuple[str, ...], groups: bool = False) -> None:
    """**Raises:** `MisfitError` unless the layer is of one of these kinds."""
    kind = f"conv{len(layout.kernel)}d" if layout.kind == "conv" else layout.kind
    if kind not in kinds:
        raise MisfitError(
            f"PEFT has adapters of this type for {', '.join(kinds)}, and this is {kind}"
        )
    if layout.groups > 1 and not groups:
        raise MisfitError("PEFT has adapters of this type for convolutions without groups")
    refuse_layer(layout)


def refuse_layer(layout: Layout, *, dora: bool = False, dilated: bool = False) -> None:
    """**Raises:** `MisfitError` if PEFT's update of the layer is not an update of its weight.

    - `dilated`: whether PEFT runs the update as dilated as the layer.
    """
    if layout.odd and not (dilated and "padding_mode" not in layout.odd):
        raise MisfitError(
            f"the layer has {layout.odd}, which PEFT leaves out when it runs the update beside it, "
            "so that no kernel does the same"
        )
    if dora and layout.groups > 1:
        raise MisfitError("PEFT's DoRA takes no norm of the rows of a kernel with groups")
