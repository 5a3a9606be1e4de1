"""Convert a model's adapters to PEFT's form, or collect the reasons why this is impossible."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree

from jno.lora import LoRAWrapper, MatrixAdapter, Shared, resolve
from jno.lora.extending import adapted_layers, path_str, show_path, values_of
from jno_lora_zoo import Method, known_factors, plain_layer

from .arrays import is_loaded
from .errors import NO_PRODUCT, MisfitError, Problems, format_errors
from .experts import ExpertArrays, join_experts
from .layouts import NO_LAYER, Shape, layout_of
from .names import HEAD, PREFIX, Rename, indexed, is_embedding, peft_name
from .ties import SHARED, Ties
from .types import TYPE_OF
from .types.type import METHODS, ROUTED, Adapter, Written

Arrays = dict[str, np.ndarray]
# The variant of a PEFT type, the scale of the update, and the arrays.
_Form = tuple[str, float, Arrays]


class WrittenAdapters:
    """A model's adapters for PEFT, by PEFT's names, and their tensors.

    - `ties_adapter`: whether PEFT must adapt the head that is tied to an embedding.
    - `has_bias`: whether biases of adapted layers changed.
    - `experts`: the arrays that PEFT adapts without their whole module.
    """

    def __init__(
        self,
        model: PyTree,
        trainable: PyTree | None,
        rename: Rename,
        ties: Ties,
        target_parameters: str | Sequence[str] | None,
    ):
        self.problems = Problems()
        self.modules: dict[str, Written] = {}
        self.tensors: Arrays = {}
        self.ties_adapter = self.has_bias = False
        self._rename, self._ties = rename, ties
        flags = () if trainable is None else (trainable,)
        # Resolve shared arrays, but not in the flags, which have the model's structure.
        resolved = dict(adapted_layers(resolve(model)))
        self.experts = experts = ExpertArrays(target_parameters, resolved)
        layers = zip(adapted_layers(model, *flags), resolved.values(), strict=True)
        for (path, wrapper, *trains), whole in layers:
            with self.problems.of(f"{show_path(path)} ({type(wrapper).__name__})"):
                bias_trains = bool(trains) and _bias_trains(trains[0])
                layers, order = _write_adapter(whole, ties.outer(path)), experts.order(path)
                for written in layers if order is None else join_experts(layers, path):
                    arrays = _written_base(wrapper, written.adapter.index, bias_trains)
                    self._add(written, arrays, ties.of(path), order)
        for module, tensors in experts.tensors().items():
            self._put(module, tensors)

    def _add(
        self, written: Written, arrays: Arrays, is_tied: bool | None, order: int | None
    ) -> None:
        """Add an adapter, and arrays of its layer."""
        module = peft_name(written.adapter.path, self._rename)
        if module in self.modules:
            path = self.modules[module].adapter.path
            raise MisfitError(f"it has PEFT's name {module!r}, as {path!r} has")
        if order is not None:
            if arrays:
                raise MisfitError("PEFT has no place for arrays of the layer beside its factors")
            self.experts.add(module, order, written)
        else:
            self._put(module, written.tensors)
        self.modules[module] = written
        kind = TYPE_OF[written.adapter.variant]
        if "bias" in arrays and not kind.bias:
            raise MisfitError(f"its bias is not the base model's, which PEFT's {kind.name} keeps")
        self.has_bias |= "bias" in arrays
        self._put(f"{module}.base_layer", arrays)
        if is_tied is not False:
            self._tie(module, written, is_tied)

    def _tie(self, module: str, written: Written, is_tied: bool | None) -> None:
        """Make PEFT's head that reads an adapted table get the update as well, as here."""
        if written.adapter.layout.kind != "embedding":
            raise MisfitError(SHARED)
        if written.adapter.variant not in ("lora", "rslora") or not is_embedding(module):
            reads = "reads" if is_tied else "may read"
            raise MisfitError(
                f"a head {reads} the adapted table, and PEFT lets a head see only LoRA or rsLoRA "
                "of an embedding 'embed_tokens' (see `rename`). If no head reads it, say "
                "tied=False; if one does, `untie` the embedding before it is adapted"
            )
        self.ties_adapter = True
        A, B = (written.tensors[f"lora_embedding_{letter}"] for letter in "AB")
        self._put(HEAD, {"lora_A.weight": B.T, "lora_B.weight": A.T})

    def _put(self, module: str, tensors: Mapping[str, np.ndarray]) -> None:
        self.tensors |= {f"{PREFIX}{module}.{name}": tensor for name, tensor in tensors.items()}


def _write_adapter(wrapper: LoRAWrapper, path: str) -> list[Written]:
    """The adapter, or an adapter per layer of a stack. **Raises:** `MisfitError` if not in PEFT."""
    where = f"of the {type(wrapper).__name__} at {show_path(path)!r}"
    if layout_of(wrapper.base) is None:
        raise MisfitError(NO_LAYER.format(type(wrapper.base).__name__))
    # This comes first, because nothing can be computed with unreadable arrays.
    state = read_arrays(wrapper.state(), where)
    fields = {name: x.array for name, x in vars(wrapper).items() if isinstance(x, Shared)}
    shared = read_arrays(fields, where)
    same_type = _in_same_type(wrapper, state)
    try:
        if same_type is None:
            raise MisfitError(NO_PRODUCT)
        return _write_layers(wrapper, path, same_type, shared)
    except MisfitError:
        is_lora = same_type is not None and same_type[0] in ("lora", "rslora", "dora")
        product = None if is_lora else known_factors(wrapper)
        if product is None:
            raise
    arrays = read_arrays({"lora_A": product.A, "lora_B": product.B}, where)
    return _write_layers(wrapper, path, ("lora", 1.0, arrays), {})


def _write_layers(wrapper: LoRAWrapper, path: str, form: _Form, shared: Arrays) -> list[Written]:
    """The adapter in this form. **Raises:** `MisfitError` if PEFT's type does not support it."""
    base = plain_layer(wrapper.base)
    (variant, scale, arrays), layout = form, layout_of(base)
    kind = TYPE_OF[variant]
    assert layout is not None
    layout.check_kind(kind.layers)
    bias, dropout = getattr(base, "bias", None), vars(wrapper).get("dropout")
    has_bias = bias is not None and bool(read_array(bias, f"the bias at {path!r}").any())
    layers: list[Written] = []
    for index in np.ndindex(*base.weight.shape[: type(wrapper).stack_ndim(wrapper.base)]):
        state = {name: np.asarray(array[index]) for name, array in arrays.items()}
        # The scale of a method, if it has one, is linear in alpha.
        multiplier = float(state.pop("multiplier", 1.0))
        if multiplier != 1 and kind.alpha is None:
            raise MisfitError("its update has a multiplier, and PEFT's type has no scale for it")
        adapter = Adapter(
            path=indexed(path, index),
            index=index,
            variant=variant,
            state=state,
            rank=wrapper.rank or 1,
            alpha=multiplier * (1.0 if wrapper.alpha is None else wrapper.alpha),
            layout=layout,
            has_bias=has_bias,
            scale=multiplier * scale,
            shared=shared,
            dropout=0.0 if dropout is None else float(dropout.p),
        )
        layers.append(kind.write(adapter))
    return layers


def _in_same_type(wrapper: LoRAWrapper, state: Arrays) -> _Form | None:
    """The variant of PEFT's type, the scale and the arrays; `None` if PEFT has no such type."""
    cls: Any = type(wrapper)
    rank, alpha = wrapper.rank, wrapper.alpha
    # The method's variant, because a layer kind may have its own, such as "lora-embedding".
    is_method = isinstance(wrapper, Method) and cls.law is cls.method.law
    variant = str(cls.method.variant if is_method else cls.variant)
    scale = MatrixAdapter.of(cls).low_rank_scale(rank, alpha)
    if scale is not None:
        return "rslora" if variant == "rslora" else "lora", scale, state
    if variant in ROUTED and cls.__name__ == ROUTED[variant]:
        return variant, 1.0 if rank is None else alpha / rank, state
    if variant not in TYPE_OF or not issubclass(cls, METHODS.get(variant, ())):
        return None
    if variant == "dora":
        members = ("scaling", "times_scale", "direction", "row_factor")
        if any(getattr(cls, name) is not getattr(METHODS[variant], name) for name in members):
            return None
        return variant, cls.scale_for(rank, alpha), state
    return variant, 1.0, state


def _bias_trains(trains: LoRAWrapper) -> bool:
    """Whether the layer's bias trains. **Raises:** `MisfitError` if another array trains."""
    leaves = jtu.tree_leaves_with_path(trains.base)
    names = {path_str(keys) for keys, flag in leaves if flag is True}
    if refused := names - {"bias"}:
        raise MisfitError(f"its own {', '.join(sorted(refused))} trains too. Freeze the layer")
    return bool(names)


def _written_base(wrapper: LoRAWrapper, index: Shape, bias_trains: bool) -> Arrays:
    """An adapted layer's bias if it trains, and its arrays that `load_peft` read, for PEFT."""
    fields = {name: getattr(wrapper.base, name, None) for name in ("weight", "bias")}
    trained = {"bias"} if bias_trains else set[str]()
    chosen = {name: x for name, x in fields.items() if is_loaded(x) or name in trained}
    arrays = read_arrays(chosen, f"in the {type(wrapper).__name__}")
    slices = {name: x[index] for name, x in arrays.items()}
    return {name: x.reshape(-1) if name == "bias" else x for name, x in slices.items()}


def read_arrays(arrays: Mapping[str, object], where: str) -> Arrays:
    """The numbers of arrays by name. **Raises:** `PeftFormatError` if they cannot be read."""
    return {name: read_array(x, f"the array {name!r} {where}") for name, x in arrays.items()}


def read_array(array: object, description: str) -> np.ndarray:
    """The numbers of an array. **Raises:** `PeftFormatError` if they cannot be read."""
    with format_errors():
        return values_of(array, description)
