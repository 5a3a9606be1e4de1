"""One adapter as PEFT has it, or the reason why PEFT cannot have it."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

import jax.tree_util as jtu
import numpy as np

from jno.lora import CheckpointError, LoRAWrapper, PeftFormatError, Shared
from jno.lora.extending import known_factors, path_str, show_path, values_of
from jno_lora_zoo import Method

from ._layouts import METHODS, Layout, Shape, layout_of
from ._loaded import is_loaded
from ._names import show_index
from ._same import Adapter
from ._types import TYPE_OF, TYPES
from ._updates import MisfitError, widened

Arrays = Mapping[str, np.ndarray]


class Written(NamedTuple):
    """One adapter as PEFT has it.

    - `path`: of its layer here, with its index in a stack: `layers/q_proj[3]`; `place`: that index.
    - `variant`: of the method of the zoo that PEFT's type has, such as `"lora"`.
    - `scale`: the factor of its update, if it is LoRA; `alpha` gives it here.
    - `settings`: those beside the rank and alpha.
    - `shared`: the tensors that all modules have part of, as this one needs them.
    """

    path: str
    variant: str
    tensors: Arrays
    rank: int
    scale: float
    alpha: float
    settings: Mapping[str, Any]
    layout: Layout
    place: Shape = ()
    shared: Arrays = {}  # noqa: RUF012

    @property
    def type(self) -> str:
        """PEFT's type."""
        return TYPE_OF[self.variant]


def written(wrapper: LoRAWrapper, path: str) -> list[Written]:
    """The adapter at `path`, of a model that was resolved, or one for each layer of a stack.

    **Raises:** `MisfitError` if PEFT has no exact equivalent; `PeftFormatError` for values that
    cannot be read.
    """
    base: Any = wrapper.base
    layout = layout_of(base)
    if layout is None:
        raise MisfitError(
            f"PEFT adapts linear layers, convolutions and embeddings, and this is a "
            f"{type(base).__name__}"
        )
    where = f"of the {type(wrapper).__name__} at {show_path(path)!r}"
    # First: nothing can be computed with arrays that cannot be read.
    state = {n: values_for_peft(x, f"the array {n!r} {where}") for n, x in wrapper.state().items()}
    fields = {n: field.array for n, field in vars(wrapper).items() if isinstance(field, Shared)}
    shared = {n: values_for_peft(x, f"the array {n!r} {where}") for n, x in fields.items()}
    bias = getattr(base, "bias", None)
    has_bias = bias is not None and bool(values_for_peft(bias, f"the bias {where}").any())
    as_own = _as_own_type(wrapper, state)
    try:
        if as_own is not None:
            return [*_written(wrapper, path, layout, has_bias, *as_own, shared)]
        refused = MisfitError(
            "its update is not a product of two factors of low rank. `to_lora` approximates it by "
            "one"
        )
    except MisfitError as err:
        refused = err
    product = None if as_own is not None and as_own[0] in _LORA else known_factors(wrapper)
    if product is None:
        raise refused
    named = zip(("lora_A", "lora_B"), product, strict=True)
    factors = {n: values_for_peft(x, f"the factor {n[-1]} {where}") for n, x in named}
    return [*_written(wrapper, path, layout, has_bias, "lora", 1.0, factors, {})]


_LORA = ("lora", "rslora", "dora")


def _written(
    wrapper: LoRAWrapper,
    path: str,
    layout: Layout,
    has_bias: bool,
    variant: str,
    scale: float,
    arrays: Arrays,
    shared: Arrays,
) -> Iterator[Written]:
    """The adapter in this variant. **Raises:** `MisfitError` if PEFT's type does not have it."""
    base: Any = wrapper.base
    kind = TYPES[TYPE_OF[variant]]
    for index in np.ndindex(*base.weight.shape[: type(wrapper).stack_ndim(base)]):
        one = {name: np.asarray(array[index]) for name, array in arrays.items()}
        # Where a method has a scale, it is linear in alpha.
        alpha = wrapper.alpha * float(one.pop("multiplier", 1.0))
        if alpha != wrapper.alpha and kind.alpha is None:
            raise MisfitError("its update has a multiplier, and PEFT's type has no scale for it")
        file = kind.writes[variant](
            Adapter(variant, one, wrapper.rank, alpha, layout, has_bias, scale, shared)
        )
        whole = f"{path}[{show_index(index)}]" if index else path
        alpha = alpha if file.alpha is None else file.alpha
        yield Written(
            whole,
            variant,
            file.tensors,
            file.rank,
            scale,
            alpha,
            file.settings,
            layout,
            index,
            file.shared,
        )


def trained_in_base(wrapper: LoRAWrapper, trains: Any) -> frozenset[str]:
    """The names of the arrays in the layer of an adapter that train: `"bias"` or none.

    - `trains`: bools in the structure of the adapter.

    **Raises:** `MisfitError` for any other array of the layer that trains.
    """
    leaves = jtu.tree_leaves_with_path(trains.base)
    names = frozenset(path_str(keys) for keys, trains in leaves if trains is True)
    if names - {"bias"}:
        raise MisfitError(
            f"its own {', '.join(sorted(names - {'bias'}))} trains too, and PEFT saves adapters "
            "beside frozen weights. Freeze the layer"
        )
    return names


def written_base(wrapper: LoRAWrapper, index: Shape, trained: Collection[str] = ()) -> Arrays:
    """The arrays of the layer in an adapter that train or that `load_peft` read, for PEFT."""
    own = {name: getattr(wrapper.base, name, None) for name in ("weight", "bias")}
    where = f"in the {type(wrapper).__name__}"
    arrays = {
        n: values_for_peft(x, f"the array {n!r} {where}")[index]
        for n, x in own.items()
        if is_loaded(x) or n in trained
    }
    return {name: x.reshape(-1) if name == "bias" else x for name, x in arrays.items()}


def _as_own_type(wrapper: LoRAWrapper, state: Arrays) -> tuple[str, float, Arrays] | None:
    """The variant of PEFT's type, the scale and the arrays; `None` if PEFT has no such type."""
    cls, rank, alpha = type(wrapper), wrapper.rank, wrapper.alpha
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
    others = {name: array for name, array in state.items() if name != "multiplier"}
    return others | {"lora_B": B * multiplier[..., None, None]}


def values_for_peft(array: Any, what: str) -> np.ndarray:
    try:
        return values_of(array, what)
    except CheckpointError as err:
        raise PeftFormatError(f"{err} Nothing was written.") from err
