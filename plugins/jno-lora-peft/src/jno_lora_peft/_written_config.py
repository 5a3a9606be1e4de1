"""The settings of `adapter_config.json` for adapters that are saved."""

import collections
import re
from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import PyTree

from jno.lora import PeftFormatError
from jno.lora.extending import bullets, modules_by_path, nearest, show_path

from ._names import EMBEDDING, Rename, is_embedding, module_name
from ._type import Setting
from ._types import TYPES
from ._updates import MisfitError, alpha_for
from ._written import Written

# PEFT's types of tasks.
TASKS = (
    "SEQ_CLS",
    "SEQ_2_SEQ_LM",
    "CAUSAL_LM",
    "TOKEN_CLS",
    "QUESTION_ANS",
    "FEATURE_EXTRACTION",
)


def described(base_model_name_or_path: Any, task_type: Any) -> dict[str, Any]:
    """The settings that say what an adapter is for. **Raises:** `PeftFormatError` if malformed."""
    name, task = base_model_name_or_path, task_type
    if name is not None and (not isinstance(name, str) or not name):
        raise PeftFormatError(
            f'`base_model_name_or_path` must be a string such as "meta-llama/Llama-3.2-1B" or the '
            f"path of a directory, but is {name!r}"
        )
    if task is not None and task not in TASKS:
        near = nearest(str(task).upper(), TASKS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise PeftFormatError(
            f"`task_type` must be one of {', '.join(TASKS)}, or None, but is {task!r}.{hint}"
        )
    return {"base_model_name_or_path": name, "task_type": None if task is None else str(task)}


def common_variant(modules: Mapping[str, Written]) -> str:
    """A variant of all these adapters' type. **Raises:** `PeftFormatError` if they have several."""
    by_kind: dict[str, list[Written]] = {}
    for one in modules.values():
        # Every rsLoRA is a LoRA with another alpha.
        kind = {"rslora": "lora"}.get(one.variant, one.variant)
        by_kind.setdefault(kind if one.type == "LORA" else one.type, []).append(one)
    if len(by_kind) == 1:
        found = {one.variant for one in modules.values()}
        return "lora" if found == {"lora", "rslora"} else next(iter(found))
    kinds = (
        f"{kind}: {', '.join(show_path(one.path) for one in ones[:3])}"
        f"{', ...' if len(ones) > 3 else ''}"
        for kind, ones in by_kind.items()
    )
    raise PeftFormatError(
        f"One adapter of PEFT is of one kind, but these are of several:\n{bullets(kinds)}\n"
        "Save each kind into a directory of its own (`unwrap_lora` a copy of the others' layers); "
        "PEFT loads several adapters into one model."
    )


def config_of(
    modules: Mapping[str, Written], variant: str, head: str | None = None
) -> dict[str, Any]:
    """The settings of an adapter of PEFT, but for those that name modules.

    - `head`: the head that PEFT ties to an embedding, with the same rank and scale.
    """
    name = next(iter(modules.values())).type
    kind, is_lora = TYPES[name], name == "LORA"
    ranks = {module: one.rank for module, one in modules.items()}
    alphas = {
        module: _number(
            alpha_for(variant, one.rank, one.scale, one.alpha) if is_lora else one.alpha
        )
        for module, one in modules.items()
    }
    if head is not None:
        embedding = next(module for module in modules if is_embedding(module))
        ranks[head], alphas[head] = ranks[embedding], alphas[embedding]
    return {
        "peft_type": name,
        "inference_mode": True,
        "fan_in_fan_out": False,
        **_numbers(kind.rank, ranks, modules),
        **_numbers(kind.alpha, alphas, modules),
        **_of_all(modules),
        **({"use_rslora": variant == "rslora"} if is_lora else {}),
        **from_all(kind.common, modules),
    }


def from_all(function: Callable[[Any], Any], modules: Mapping[str, Any]) -> Any:
    """The settings that a type has once. **Raises:** `PeftFormatError` if modules disagree."""
    try:
        return function(modules)
    except MisfitError as err:
        raise PeftFormatError(f"{err}. Nothing was written.") from err


def _of_all(modules: Mapping[str, Written]) -> dict[str, Any]:
    """The settings that all adapters share. **Raises:** `PeftFormatError` if they differ."""
    settings: dict[str, Any] = {}
    for one in modules.values():
        for name, value in one.settings.items():
            if settings.setdefault(name, value) != value:
                raise _differ(name, {show_path(m.path): m.settings[name] for m in modules.values()})
    return settings


def _numbers(
    setting: Setting | None, numbers: Mapping[str, Any], modules: Mapping[str, Written]
) -> dict[str, Any]:
    """A setting with a number, and a pattern for the modules that have another one."""
    if setting is None:
        return {}
    usual, others = _usual_and_others(numbers)
    if setting.by_name:
        others = {name: number for name, number in numbers.items() if number != usual}
        ends = tuple(f".{name}" for name in others)
        others = {} if any(name.endswith(ends) for name in numbers) and ends else others
    if setting.pattern and (others or len({*numbers.values()}) == 1):
        return {setting.name: usual, setting.pattern: others}
    if len({*numbers.values()}) > 1:
        raise _differ(
            setting.name, {show_path(one.path): numbers[name] for name, one in modules.items()}
        )
    return {setting.name: usual}


def _differ(name: str, values: Mapping[str, Any]) -> PeftFormatError:
    lines = (f"{path}: {value!r}" for path, value in values.items())
    return PeftFormatError(
        f"PEFT has one `{name}` for all layers of an adapter of this type, but these have "
        f"several:\n{bullets(lines, 8)}\n"
        "Nothing was written. Save each into a directory of its own."
    )


def _usual_and_others(numbers: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The most common number, and a pattern for each module that has another."""
    usual = collections.Counter(numbers.values()).most_common(1)[0][0]
    # PEFT looks for a pattern at the end of a name, unless it says where the name begins.
    return usual, {f"^{re.escape(m)}": other for m, other in numbers.items() if other != usual}


def _number(value: float) -> int | float:
    return int(value) if value.is_integer() else value


def targets(modules: Mapping[str, Written], model: PyTree, rename: Rename) -> list[str] | str:
    """The names of the modules; as a regex if one may be the end of a name that is not meant."""
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
