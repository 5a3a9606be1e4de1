"""An adapter of a model as PEFT has it, or the reason why PEFT cannot have it."""

from collections.abc import Collection
from typing import Any

import jax.tree_util as jtu
import numpy as np

from jno.lora import CheckpointError, LoRAWrapper, PeftFormatError, Shared
from jno.lora.extending import known_factors, path_str, show_path, values_of
from jno_lora_zoo import Method

from .._errors import MisfitError
from .._names import show_index
from ..model.arrays import is_loaded
from ..model.layouts import Shape, layout_of
from ..types import METHODS, TYPE_OF, Adapter, Written, widened

Arrays = dict[str, np.ndarray]

_LORA = ("lora", "rslora", "dora")


def write_adapter(wrapper: LoRAWrapper, path: str) -> list[Written]:
    """The adapter at `path`, of a model that was resolved, or one for each layer of a stack.

    **Raises:** `MisfitError` if PEFT has no exact equivalent; `PeftFormatError` for values that
    cannot be read.
    """
    where = f"of the {type(wrapper).__name__} at {show_path(path)!r}"
    if layout_of(wrapper.base) is None:
        raise MisfitError(
            f"PEFT adapts linear layers, convolutions and embeddings, and this is a "
            f"{type(wrapper.base).__name__}"
        )
    # First: nothing can be computed with arrays that cannot be read.
    state = _values(wrapper.state(), where)
    fields = vars(wrapper).items()
    shared = _values({n: field.array for n, field in fields if isinstance(field, Shared)}, where)
    same_type = _in_same_type(wrapper, state)
    try:
        if same_type is None:
            raise MisfitError(
                "its update is not a product of two factors of low rank. `to_lora` approximates it "
                "by one"
            )
        variant, scale, arrays = same_type
        return _write_layers(wrapper, path, variant, scale, arrays, shared)
    except MisfitError:
        is_lora = same_type is not None and same_type[0] in _LORA
        product = None if is_lora else known_factors(wrapper)
        if product is None:
            raise
    A, B = (values_for_peft(product[i], f"the factor {'AB'[i]} {where}") for i in range(2))
    return _write_layers(wrapper, path, "lora", 1.0, {"lora_A": A, "lora_B": B}, {})


def _write_layers(
    wrapper: LoRAWrapper, path: str, variant: str, scale: float, arrays: Arrays, shared: Arrays
) -> list[Written]:
    """The adapter in this variant. **Raises:** `MisfitError` if PEFT's type does not have it."""
    base: Any = wrapper.base
    layout, kind = layout_of(base), TYPE_OF[variant]
    assert layout is not None
    bias = getattr(base, "bias", None)
    has_bias = bias is not None and bool(values_for_peft(bias, f"the bias at {path!r}").any())
    layers: list[Written] = []
    for index in np.ndindex(*base.weight.shape[: type(wrapper).stack_ndim(base)]):
        state = {name: np.asarray(array[index]) for name, array in arrays.items()}
        # Where a method has a scale, it is linear in alpha.
        alpha = wrapper.alpha * float(state.pop("multiplier", 1.0))
        if alpha != wrapper.alpha and kind.alpha is None:
            raise MisfitError("its update has a multiplier, and PEFT's type has no scale for it")
        adapter = Adapter(
            path=f"{path}[{show_index(index)}]" if index else path,
            index=index,
            variant=variant,
            state=state,
            rank=wrapper.rank,
            alpha=alpha,
            layout=layout,
            has_bias=has_bias,
            scale=scale,
            shared=shared,
        )
        layers.append(kind.write(adapter))
    return layers


def _in_same_type(wrapper: LoRAWrapper, state: Arrays) -> tuple[str, float, Arrays] | None:
    """The variant of PEFT's type, the scale and the arrays; `None` if PEFT has no such type."""
    cls, rank, alpha = type(wrapper), wrapper.rank, wrapper.alpha
    # An adapter may have a variant for its kind of layer, such as "lora-embedding".
    variant = str(cls.method.variant if issubclass(cls, Method) else cls.variant)
    scale = cls.low_rank_scale(rank, alpha)
    if scale is not None:
        return "rslora" if variant == "rslora" else "lora", scale, _without_multiplier(state)
    if variant not in TYPE_OF or not issubclass(cls, METHODS[variant]):
        return None
    if variant == "dora":
        return variant, METHODS[variant].scale_for(rank, alpha), _without_multiplier(state)
    return variant, 1.0, state


def _without_multiplier(state: Arrays) -> Arrays:
    """A state whose `lora_B` has the multiplier of the update in it, if there is one."""
    if not {"multiplier", "lora_B"} <= state.keys():
        return state
    B, multiplier = widened(state["lora_B"]), widened(state["multiplier"])
    arrays = {name: array for name, array in state.items() if name != "multiplier"}
    return arrays | {"lora_B": B * multiplier[..., None, None]}


def trained_in_base(trains: Any) -> frozenset[str]:
    """The names of the arrays in the layer of an adapter that train: `"bias"` or none.

    - `trains`: bools in the structure of the adapter.

    **Raises:** `MisfitError` for any other array of the layer that trains.
    """
    leaves = jtu.tree_leaves_with_path(trains.base)
    names = frozenset(path_str(keys) for keys, flag in leaves if flag is True)
    if refused := names - {"bias"}:
        raise MisfitError(
            f"its own {', '.join(sorted(refused))} trains too, and PEFT saves adapters beside "
            "frozen weights. Freeze the layer"
        )
    return names


def written_base(wrapper: LoRAWrapper, index: Shape, trained: Collection[str] = ()) -> Arrays:
    """The arrays of the layer in an adapter that train or that `load_peft` read, for PEFT."""
    fields = {name: getattr(wrapper.base, name, None) for name in ("weight", "bias")}
    chosen = {name: x for name, x in fields.items() if is_loaded(x) or name in trained}
    arrays = _values(chosen, f"in the {type(wrapper).__name__}")
    slices = {name: x[index] for name, x in arrays.items()}
    return {name: x.reshape(-1) if name == "bias" else x for name, x in slices.items()}


def values_for_peft(array: Any, description: str) -> np.ndarray:
    """The numbers of an array. **Raises:** `PeftFormatError` if they cannot be read."""
    try:
        return values_of(array, description)
    except CheckpointError as err:
        raise PeftFormatError(f"{err} Nothing was written.") from err


def _values(arrays: Any, where: str) -> Arrays:
    return {n: values_for_peft(x, f"the array {n!r} {where}") for n, x in arrays.items()}
