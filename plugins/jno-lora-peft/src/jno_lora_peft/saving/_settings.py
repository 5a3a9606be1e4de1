"""The settings of `adapter_config.json` for adapters that are saved."""

import collections
import re
from collections.abc import Mapping
from typing import Any

from jaxtyping import PyTree

from jno.lora import PeftFormatError
from jno.lora.extending import bullets, modules_by_path, show_path

from .._errors import MisfitError
from .._names import EMBEDDING, HEAD, Rename, is_embedding, may_be_tied, module_name
from ..types import TYPE_OF, Modules, Setting, alpha_for
from ._adapters import WrittenAdapters
from ._trained_arrays import TrainedArrays

_TASKS = ["SEQ_CLS", "SEQ_2_SEQ_LM", "CAUSAL_LM", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION"]


def check_task(task_type: str | None) -> None:
    """**Raises:** `PeftFormatError` for a task that PEFT does not know."""
    if task_type is not None and task_type not in _TASKS:
        raise PeftFormatError(
            f"`task_type` must be one of {', '.join(_TASKS)}, or None, but is {task_type!r}."
        )


def settings_of(
    adapters: WrittenAdapters,
    arrays: TrainedArrays,
    model: PyTree,
    rename: Rename,
    task_type: str | None,
) -> dict[str, Any]:
    """The settings of adapters. **Raises:** `MisfitError` if PEFT cannot keep them together."""
    variant = common_variant(adapters.modules)
    kind = TYPE_OF[variant]
    if (arrays.ties and kind.name != "LORA") or (
        adapters.ties_adapter and any(map(may_be_tied, arrays.names))
    ):
        raise MisfitError(
            "PEFT ties a head to its embedding for LoRA alone, and either in adapters or in "
            f"modules_to_save, but these adapters are beside {', '.join(arrays.names)}"
        )
    experts = adapters.experts.names
    whole = {name: x for name, x in adapters.modules.items() if name not in experts}
    settings = {
        "peft_type": kind.name,
        "inference_mode": True,
        "fan_in_fan_out": False,
        **_settings_of_modules(adapters, variant),
        "target_modules": _targets(whole, model, rename) if whole else None,
        "modules_to_save": arrays.names or None,
        **kind.common(adapters.modules),
    }
    if kind.name == "LILY" and isinstance(settings["target_modules"], str) and len(whole) > 1:
        raise MisfitError(
            "PEFT lets layers share all factors if it gets their names as one regular expression, "
            f"which these names need: {', '.join(whole)}. Give other names with `rename`"
        )
    if experts:
        settings["target_parameters"] = experts
        if settings.get("lora_bias"):
            raise MisfitError("PEFT trains no biases by LoRA beside arrays of experts")
    if kind.bias:
        settings["bias"] = kind.bias if adapters.has_bias else "none"
    if kind.name == "LORA":
        settings["use_rslora"] = variant == "rslora"
        settings["ensure_weight_tying"] = adapters.ties_adapter or arrays.ties
    if settings.get("alora_invocation_tokens"):
        settings["task_type"] = "CAUSAL_LM"
        if task_type not in (None, "CAUSAL_LM"):
            raise MisfitError(
                f"`task_type` is {task_type!r}, and PEFT looks for the invocation of aLoRA in "
                "CAUSAL_LM alone. Leave `task_type` out"
            )
    return settings


def common_variant(modules: Modules) -> str:
    """A variant of all these adapters' type. **Raises:** `MisfitError` if they have several."""
    by_kind: dict[str, list[str]] = {}
    for written in modules.values():
        variant = written.adapter.variant
        # Every rsLoRA is a LoRA with another alpha.
        kind = "lora" if variant == "rslora" else variant
        name = TYPE_OF[variant].name
        paths = by_kind.setdefault(kind if name == "LORA" else name, [])
        paths.append(show_path(written.adapter.path))
    if len(by_kind) == 1:
        variants = {written.adapter.variant for written in modules.values()}
        return "lora" if variants == {"lora", "rslora"} else next(iter(variants))
    kinds = (
        f"{kind}: {', '.join(paths[:3])}{', ...' if len(paths) > 3 else ''}"
        for kind, paths in by_kind.items()
    )
    raise MisfitError(
        f"One adapter of PEFT is of one kind, but these are of several:\n{bullets(kinds)}\n"
        "Save each kind into a directory of its own (`unwrap_lora` the other layers in a copy of "
        "the model)"
    )


def _settings_of_modules(adapters: WrittenAdapters, variant: str) -> dict[str, Any]:
    """The numbers of modules, and the settings that modules must agree on."""
    kind, modules = TYPE_OF[variant], adapters.modules
    ranks: dict[str, Any] = {}
    alphas: dict[str, Any] = {}
    for module, written in modules.items():
        rank, alpha = written.adapter.rank, written.adapter.alpha
        if kind.name == "LORA":
            alpha = alpha_for(variant, rank, written.adapter.scale, alpha)
        ranks[module] = rank
        alphas[module] = int(alpha) if alpha.is_integer() else alpha
    if adapters.ties_adapter:  # the head has the scale of its embedding
        embedding = next(module for module in modules if is_embedding(module))
        ranks[HEAD], alphas[HEAD] = ranks[embedding], alphas[embedding]
    settings = {**_numbers(kind.rank, ranks, modules), **_numbers(kind.alpha, alphas, modules)}
    for written in modules.values():
        for name, value in written.settings.items():
            if settings.setdefault(name, value) != value:
                raise _differ(name, modules, {m: w.settings[name] for m, w in modules.items()})
    return settings


def _numbers(setting: Setting | None, numbers: dict[str, Any], modules: Modules) -> dict[str, Any]:
    """A setting with a number, and a pattern for the modules that have another number."""
    if setting is None:
        return {}
    usual = collections.Counter(numbers.values()).most_common(1)[0][0]
    unusual = {name: number for name, number in numbers.items() if number != usual}
    if not unusual:
        return {setting.name: usual, **({setting.pattern: {}} if setting.pattern else {})}
    if setting.by_name:
        ends = tuple(f".{name}" for name in unusual)
        has_pattern = not any(name.endswith(ends) for name in numbers)
    else:
        # PEFT looks for a pattern at the end of a name, unless it says where the name begins.
        unusual = {f"^{re.escape(name)}": number for name, number in unusual.items()}
        has_pattern = bool(setting.pattern)
    if not has_pattern:
        raise _differ(setting.name, modules, numbers)
    return {setting.name: usual, setting.pattern: unusual}


def _differ(name: str, modules: Modules, values: Mapping[str, Any]) -> MisfitError:
    lines = (f"{show_path(w.adapter.path)}: {values[module]!r}" for module, w in modules.items())
    return MisfitError(
        f"PEFT has one `{name}` for all layers of an adapter of this type, but these have "
        f"several:\n{bullets(lines, 8)}\n"
        "Save each into a directory of its own"
    )


def _targets(modules: Modules, model: PyTree, rename: Rename) -> list[str] | str:
    """The names of the modules; as a regex if a name may be the end of a name that is not meant."""
    names = sorted(modules)
    ends = tuple(f".{name}" for name in names)
    # A function may know the names of adapted layers only, so the other names are unknown.
    if callable(rename) or any(
        name.endswith(ends) and name not in modules
        for name in (module_name(path, rename) for path in modules_by_path(model))
    ):
        # PEFT looks for an embedding to tie by its short name.
        short = [EMBEDDING] if any(map(is_embedding, names)) else []
        return "|".join(map(re.escape, [*names, *short]))
    return names
