"""Read the LoRAs of a source, and how they are scaled."""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from jno.lora import PeftFormatError, SelectionError
from jno.lora.extending import show_path, warn
from jno_lora_peft.config import Config
from jno_lora_peft.errors import MisfitError, Problems
from jno_lora_peft.files import not_finite
from jno_lora_peft.layouts import Shape
from jno_lora_peft.names import Rename, compiled, has_rule, module_name
from jno_lora_peft.types.lora import PURE

from ._laws import Law
from ._pairs import Pair, first_factor, weight_path
from ._states import State
from ._updates import LayerLoRA, Module

# Settings that make more of an adapter than a product of two factors.
_ODD = ("use_dora", "lora_bias", "target_parameters", "alora_invocation_tokens")


@dataclasses.dataclass(frozen=True)
class Options:
    """How a source is read: arguments of `convert_lora`."""

    alpha: float | None = None
    rename: Rename = None
    prefix: str = ""
    stack_axis: int | None = None
    transposed: str | None = None


def read_loras(
    pairs: list[Pair], state: State, options: Options, problems: Problems
) -> list[LayerLoRA]:
    """The LoRAs of a state's pairs. Pairs that cannot be read get a line in `problems`.

    **Raises:** `PeftFormatError` if there are none, or if they are not plain LoRA; `SelectionError`
    for an alpha that is missing or has no use.
    """
    for config in state.configs.values():
        _expect_plain_lora(config)
    if not (pairs or problems):
        raise PeftFormatError("The source holds no arrays of LoRA, or none with this prefix.")
    if options.alpha is not None and pairs and not any(x.takes_alpha(state) for x in pairs):
        raise SelectionError(f"alpha={options.alpha!r}, but the scales of all LoRAs are known")
    layers: list[LayerLoRA] = []
    for pair in pairs:
        with problems.of(show_path(pair.key)):
            layers.append(_read_layer(pair, state, options))
    if options.alpha is None and (number := sum(bool(x.source.alpha_is_rank) for x in pairs)):
        warn(
            f"openpi does not save its alphas: {number} LoRAs are scaled by 1, as in its variants "
            "gemma_2b_lora and gemma_300m_lora. If your LoRAConfig has another scale, give `alpha`."
        )
    return layers


def _expect_plain_lora(config: Config) -> None:
    """**Raises:** `PeftFormatError` if adapters are more than a product of two factors."""
    start = config.settings.get("init_lora_weights")
    odd = {name: value for name in _ODD if (value := config.settings.get(name))}
    if config.type.name != "LORA" or odd or start not in PURE:
        raise PeftFormatError(
            f"Only plain LoRA can be converted, not {config.type.name} with "
            f"{odd | {'init_lora_weights': start}}. If load_peft reads it, use save_peft."
        )


def _read_layer(pair: Pair, state: State, options: Options) -> LayerLoRA:
    """The LoRA of a pair. **Raises:** `MisfitError`."""
    arrays = {name: np.asarray(array) for name, array in pair.arrays.items()}
    if lines := not_finite(arrays):
        raise MisfitError(*(f"NaN or infinity in its array {line}" for line in lines))
    A, B = first_factor(arrays), arrays["B"]
    stack_axis = _stack_axis(pair, A.shape, B.shape, options.stack_axis)
    laws = pair.source.laws_of(pair.law, A.shape, B.shape, stack_axis)
    sizes = laws[0].sizes(A, B)
    scale = _scale(pair, sizes["r"], state, options)
    modules = _modules(pair, laws[0], sizes, state, options)
    names = [module_name(name, options.rename) for name in pair.names]
    weights = [weight_path(x.replace("{module}", name)) for name in names for x in pair.weights]
    peft = state.config_for(pair.key)
    is_tied = peft is not None and peft.config.ties_adapter_of(peft.name)
    return LayerLoRA(pair, A, B, laws, scale, modules, weights, is_tied)


def _scale(pair: Pair, rank: int, state: State, options: Options) -> float:
    """The scale of the update, which is not 0."""
    peft, settings = state.config_for(pair.key), state.settings_for(pair.key)
    if peft is not None and (wanted := peft.config.rank(peft.name)) != rank:
        raise MisfitError(f"its rank is {rank}, but {wanted} in its configuration")
    alpha = pair.alpha(state, options.alpha)
    if alpha == 0:
        raise MisfitError("its alpha is 0, so that it changes nothing")
    divisor = math.sqrt(rank) if settings.get("use_rslora") else rank
    return 1.0 if alpha is None else alpha / divisor


def _modules(
    pair: Pair, law: Law, sizes: Mapping[str, int], state: State, options: Options
) -> list[Module]:
    """The modules that the weight of a pair holds."""
    is_linear = not (pair.is_embedding or "x" in law.a)
    by_default = "" if state.settings_for(pair.key).get("fan_in_fan_out") else "(?!)"
    transposed = compiled(options.transposed or by_default, "transposed")
    axes = [axis for axis in "lc" if axis in sizes]
    modules: list[Module] = []
    for place in np.ndindex(*(sizes[axis] for axis in axes)):
        index = dict(zip(axes, place, strict=True))
        title = pair.source.module_of(pair.law, pair.names[-1], index)
        name = module_name(title, options.rename)
        is_transposed = bool(transposed.search(name)) if is_linear else None
        is_renamed = has_rule((title, *pair.names), options.rename)
        title = module_name(title, None)
        modules.append(Module(name, title, index, pair.is_embedding, is_transposed, is_renamed))
    return modules


def _stack_axis(pair: Pair, A: Shape, B: Shape, given: int | None) -> int | None:
    """The axis of Qwix's factors that runs over layers. **Raises:** `MisfitError` if it is open."""
    if pair.source.name not in ("Qwix", "MaxText") or min(len(A), len(B)) < 3:
        return None
    axes = [x for x in (0, 1) if given in (None, x) and A[x] == B[x] and B[1 - x] == A[-1]]
    if len(axes) > 1:
        raise MisfitError(f"axis 0 or axis 1 of {A} and {B} may run over layers: say stack_axis")
    return axes[0] if axes else None
