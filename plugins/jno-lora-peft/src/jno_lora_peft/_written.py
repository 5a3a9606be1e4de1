"""One adapter as PEFT has it, or the reason why PEFT cannot have it."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np

from jno.lora import CheckpointError, LoRAWrapper, PeftFormatError
from jno.lora.extending import known_factors, show_path, values_of
from jno_lora_zoo import IA3, DoRA, rsLoRA

from ._layouts import Layout, layout_of
from ._updates import MisfitError, refuse_layer, scale_of, widened

Kind = Literal["lora", "rslora", "dora", "ia3"]


@dataclasses.dataclass(frozen=True)
class Written:
    """One adapter as PEFT has it.

    - `path`: of its layer here.
    - `scale`: the factor of its update; `rank` and `alpha` give it by the rule of its kind.
    """

    path: str
    kind: Kind
    tensors: Mapping[str, np.ndarray]
    rank: int = 1
    scale: float = 1.0
    alpha: float = 1.0


def written(wrapper: LoRAWrapper, path: str) -> Iterator[tuple[tuple[int, ...], Written]]:
    """The adapter at `path` for PEFT, or one for each layer of a stack with its index.

    **Raises:** `MisfitError` if PEFT has no exact equivalent for it; `PeftFormatError` for an array
    whose values cannot be read.
    """
    layout = layout_of(wrapper.base)
    if layout is None:
        raise MisfitError(
            f"PEFT adapts linear layers, convolutions and embeddings, and this is a "
            f"{type(wrapper.base).__name__}"
        )
    where = f"of the {type(wrapper).__name__} at {show_path(path)!r}"
    # First: nothing can be computed with arrays that cannot be read.
    state = {n: _values(x, f"the array {n!r} {where}") for n, x in wrapper.state().items()}
    kind, arrays = _kind(wrapper, state, where)
    bias = getattr(wrapper.base, "bias", None)
    if kind == "ia3" and bias is not None and _values(bias, f"the bias {where}").any():
        raise MisfitError("PEFT's IA3 also scales the bias of a layer, which IA3 here leaves alone")
    ndim = type(wrapper).stack_ndim(wrapper.base)
    stack = next(iter(arrays.values())).shape[:ndim]
    for index in np.ndindex(*stack):
        one = {name: array[index] for name, array in arrays.items()}
        yield index, _ia3(layout, one) if kind == "ia3" else _lora(layout, kind, one, wrapper)


def _kind(
    wrapper: LoRAWrapper, state: dict[str, np.ndarray], where: str
) -> tuple[Kind, dict[str, np.ndarray]]:
    """The kind of an adapter for PEFT, and its arrays: the factors if it is an update."""
    cls = type(wrapper)
    state = _without_multiplier(state)
    if cls.variant == IA3.variant and state.keys() == {*IA3.adapter_fields}:
        return "ia3", state
    if cls.variant == DoRA.variant and state.keys() == {*DoRA.adapter_fields}:
        return "dora", state
    if cls.low_rank_scale(wrapper.rank, wrapper.alpha) is not None:
        return "rslora" if cls.variant == rsLoRA.variant else "lora", state
    product = known_factors(wrapper)
    if product is None:
        raise MisfitError(
            "its update is not a product of two factors of low rank. `to_lora` approximates it by "
            "one"
        )
    named = zip(("lora_A", "lora_B"), product, strict=True)
    return "lora", {n: _values(x, f"the factor {n[-1]} {where}") for n, x in named}


def _without_multiplier(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A state whose `lora_B` has the multiplier of the update in it, if there is one."""
    if not {"multiplier", "lora_B"} <= state.keys():
        return state
    B, multiplier = widened(state["lora_B"]), widened(state["multiplier"])
    others = {name: array for name, array in state.items() if name != "multiplier"}
    return others | {"lora_B": B * multiplier[..., None, None]}


def _lora(
    layout: Layout, kind: Kind, arrays: Mapping[str, np.ndarray], wrapper: LoRAWrapper
) -> Written:
    A, B = arrays["lora_A"], arrays["lora_B"]
    outputs, inputs = layout.matrix
    if A.shape != (len(A), inputs) or B.shape != (outputs, len(A)):
        raise MisfitError(
            f"its factors {B.shape} and {A.shape} do not make the ({outputs}, {inputs}) of PEFT's "
            "weight for this layer"
        )
    refuse_layer(layout, dora=kind == "dora")
    down, up = layout.from_matrices(A, B)
    tensors: dict[str, np.ndarray] = dict(zip(layout.factors, (down, up), strict=True))
    if kind == "dora":
        tensors["lora_magnitude_vector"] = arrays["magnitude"].reshape(layout.magnitude_shape)
    rank, scale = len(down), type(wrapper).low_rank_scale(wrapper.rank, wrapper.alpha)
    if kind == "dora":
        scale = scale_of(kind, wrapper.rank, wrapper.alpha)
    if scale is None:  # it is in the factors already
        return Written("", kind, tensors, rank, 1.0, rank)
    alpha = scale / scale_of(kind, rank, 1.0)
    if math.isclose(alpha, wrapper.alpha):  # the number as the user wrote it
        alpha = wrapper.alpha
    return Written("", kind, tensors, rank, scale, alpha)


def _ia3(layout: Layout, arrays: Mapping[str, np.ndarray]) -> Written:
    if layout.kind == "embedding" or len(layout.kernel) == 1:
        what = "embeddings" if layout.kind == "embedding" else "convolutions of one axis"
        raise MisfitError(f"PEFT's IA3 has no equivalent for {what}")
    return Written("", "ia3", {"ia3_l": arrays["scale"].reshape(layout.scale_shape)})


def _values(array: Any, what: str) -> np.ndarray:
    """The values of an array. **Raises:** `PeftFormatError` if they cannot be read."""
    try:
        return values_of(array, what)
    except CheckpointError as err:
        raise PeftFormatError(f"{err} Nothing was written.") from err
