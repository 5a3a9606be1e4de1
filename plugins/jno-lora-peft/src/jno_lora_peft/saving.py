"""Save a model's adapters as PEFT files."""

import collections
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxtyping import PyTree

from jno.lora import Net, PeftFormatError
from jno.lora.extending import (
    bullets,
    default_registry,
    expect_model,
    modules_by_path,
    show_path,
    warn,
)

from .bases import as_metadata, unchanged_weight
from .errors import MisfitError
from .files import Directory, write
from .names import EMBEDDING, HEAD, Rename, is_embedding, may_be_tied, module_name
from .ties import Ties
from .trained_arrays import TrainedArrays
from .types import TYPE_OF
from .types.type import Modules, Setting, Settings, alpha_for
from .written import WrittenAdapters


def save_peft(
    model: PyTree | Net,
    directory: Directory,
    *,
    rename: Rename = None,
    modules_to_save: str | None = None,
    target_parameters: str | Sequence[str] | None = None,
    tied: bool | None = None,
    base_model_name_or_path: str | os.PathLike[str] | None = None,
    task_type: str | None = None,
    proof: Any = None,
) -> None:
    """Write the adapters of `model` as one PEFT adapter, for `PeftModel.from_pretrained`.

    A method that PEFT also has is written as PEFT's type. Other methods are written as LoRA with
    the same update if the update is a product of two low-rank factors (with twice the rank for
    methods such as PiSSA, which change the weight at the start). So is a mix of LoRA and rsLoRA.
    The page "PEFT's types" lists them. The adapted layers are not written, because PEFT puts
    the adapters around its own layers.

    Trained arrays outside the adapters are written as PEFT's `modules_to_save`: arrays that a `Net`
    trains, arrays that `modules_to_save` names, and arrays that `load_peft` read from a file and
    that did not change since. A plain model has no record of which arrays were trained. A model
    without adapters is written with these arrays alone, in the type that was read or as
    `LN_TUNING`.

    **Arguments:**

    - `model`: a `Net`, or an adapted model.
    - `directory`: created if it does not exist. An adapter in it is replaced.
    - `rename`: from the paths of layers here to PEFT's names of modules: a table of regular
        expressions and replacements, each used in turn on the path (`{"^": "model/"}`) before its
        slashes become dots, or a function of the path that returns the dotted name. Each layer of a
        stack has a path such as `layers/q_proj[3]`.
    - `modules_to_save`: a regular expression for the paths of arrays outside the adapters, such as
        `"^classifier/|norm/"`: their modules are written whole. It overrides the arrays that a
        `Net` trains.
    - `target_parameters`: regular expressions for the paths of stacks that are one array of all
        experts in PEFT, as in fused mixtures of experts; the last axis of the stack runs over the
        experts. PEFT's name of the array comes from `rename`, as for a layer. Each of several
        arrays in a module needs an expression, in the order in which Torch's module defines the
        arrays: `["gate_up_proj$", "down_proj$"]`.
    - `tied`: whether an output head reads the table of an adapted embedding, as for `load_peft`. An
        adapter that the head uses too is written with PEFT's `ensure_weight_tying`; an adapter that
        acts only on lookups is in an `Untied`.
    - `base_model_name_or_path`: the name or path of the model that the adapter is for.
    - `task_type`: PEFT's name of the task, such as `"CAUSAL_LM"`, by which `AutoPeftModel` chooses
        the model's class. PEFT looks for aLoRA's invocation only in `"CAUSAL_LM"`, which is the
        default for aLoRA.
    - `proof`: inputs of the model, as for `jno.lora.save_adapters`. What the model computes on them
        is written beside PEFT's files, for `load_peft(..., prove=True)`, and for Torch:
        `python -m jno_lora_peft.proof`. Needs `jno-lora[proof]`.

    **Raises:** `PeftFormatError` that lists every adapter, or every trained array, without an exact
    equivalent in PEFT; also if a setting is malformed, PEFT cannot combine the kinds of adapters,
    an array cannot be read (tracers, donated arrays), or the files cannot be written; the old files
    are then complete, or lack the configuration, so that nothing loads. `SelectionError` for a bad
    `rename`, `modules_to_save`, `target_parameters` or model.
    """
    settings: dict[str, object] = {
        "base_model_name_or_path": base_model_name_or_path and os.fspath(base_model_name_or_path),
        "task_type": task_type,
    }
    given, trainable = model, None
    if isinstance(model, Net):
        model, trainable = model.module, model.trainable
    expect_model(model, "save_peft")
    ties = Ties(model, tied)
    adapters = WrittenAdapters(model, trainable, rename, ties, target_parameters)
    title = "These adapters have no exact equivalent in PEFT"
    adapters.problems.refuse(title, "Nothing was written.")
    modules = adapters.modules
    arrays = TrainedArrays(model, rename, ties, modules)
    # Without adapters, only arrays that `load_peft` read are written.
    arrays.choose(trainable if modules else None, modules_to_save)
    arrays.problems.refuse(
        "PEFT cannot save these arrays beside the adapters",
        "Nothing was written. To write the adapters alone, save `net.module`.",
    )
    names = {written.adapter.path: module for module, written in modules.items()} | arrays.names
    add_proof = default_registry().recorded(given, proof, names)
    if modules:
        try:
            settings |= _settings_of(adapters, arrays, model, rename, task_type)
            shared = TYPE_OF[_common_variant(modules)].shares(modules)
        except MisfitError as err:
            raise PeftFormatError(f"{err}. Nothing was written.") from err
        tensors = {**adapters.tensors, **arrays.tensors(), **arrays.head, **shared}
        nodes = modules_by_path(model)
        bases = {m: unchanged_weight(nodes.get(x.adapter.path)) for m, x in modules.items()}
        write(directory, settings, tensors, as_metadata(bases))
    elif arrays.modules:
        settings_alone, tensors = arrays.alone()
        write(directory, {**settings, "inference_mode": True, **settings_alone}, tensors)
    else:
        raise PeftFormatError("The model carries no adapters to save. Save before merging.")
    add_proof(directory)


def _settings_of(
    adapters: WrittenAdapters,
    arrays: TrainedArrays,
    model: PyTree,
    rename: Rename,
    task_type: str | None,
) -> Settings:
    """The settings of adapters. **Raises:** `MisfitError` if PEFT cannot combine them."""
    variant = _common_variant(adapters.modules)
    kind = TYPE_OF[variant]
    ties_both = adapters.ties_adapter and any(map(may_be_tied, arrays.modules))
    if (arrays.head and kind.name != "LORA") or ties_both:
        raise MisfitError(
            "PEFT ties a head to its embedding for LoRA alone, and either in adapters or in "
            f"modules_to_save, but these adapters are beside {', '.join(arrays.modules)}"
        )
    experts = adapters.experts.names
    whole = [name for name in adapters.modules if name not in experts]
    # A function may only handle the names of adapted layers, so all other names are unknown.
    paths = None if callable(rename) else modules_by_path(model)
    names = paths and [module_name(path, rename) for path in paths]
    settings = {
        "peft_type": kind.name,
        "inference_mode": True,
        "fan_in_fan_out": False,
        **_settings_of_modules(adapters, variant),
        "target_modules": targets(whole, names) if whole else None,
        "modules_to_save": [*arrays.modules] or None,
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
        settings["lora_dropout"] = _dropout_of(adapters.modules, has_experts=bool(experts))
        settings["ensure_weight_tying"] = adapters.ties_adapter or bool(arrays.head)
    if settings.get("alora_invocation_tokens"):
        settings["task_type"] = "CAUSAL_LM"
        if task_type not in (None, "CAUSAL_LM"):
            raise MisfitError(
                f"task_type={task_type!r}, but PEFT looks for aLoRA's invocation in CAUSAL_LM alone"
            )
    return settings


def _common_variant(modules: Modules) -> str:
    """A variant of the adapters' common type. **Raises:** `MisfitError` if the types differ."""
    by_kind: dict[str, list[str]] = {}
    for written in modules.values():
        kind = TYPE_OF[written.adapter.variant].name
        if kind == "LORA":  # every rsLoRA is a LoRA with another alpha
            kind = written.adapter.variant.removeprefix("rs")
        by_kind.setdefault(kind, []).append(show_path(written.adapter.path))
    if len(by_kind) == 1:
        variants = {written.adapter.variant for written in modules.values()}
        return "lora" if variants == {"lora", "rslora"} else next(iter(variants))
    kinds = (f"{kind}: {', '.join(paths)}" for kind, paths in by_kind.items())
    raise MisfitError(
        f"One adapter of PEFT is of one kind, but these are of several:\n{bullets(kinds)}\n"
        "Save each kind on its own (`unwrap_lora` the other layers in a copy of the model)"
    )


def _settings_of_modules(adapters: WrittenAdapters, variant: str) -> Settings:
    """The numbers for single modules, and the settings that all modules must agree on."""
    kind, modules = TYPE_OF[variant], adapters.modules
    ranks = {module: written.adapter.rank for module, written in modules.items()}
    alphas = {module: written.adapter.alpha for module, written in modules.items()}
    if kind.name == "LORA":
        for module, written in modules.items():
            scale = written.adapter.scale
            alphas[module] = alpha_for(variant, ranks[module], scale, alphas[module])
    if adapters.ties_adapter:  # the head uses the scale of its embedding
        embedding = next(filter(is_embedding, modules))
        ranks[HEAD], alphas[HEAD] = ranks[embedding], alphas[embedding]
    settings = {**with_pattern(kind.rank, ranks), **with_pattern(kind.alpha, alphas)}
    for written in modules.values():
        for name, value in written.settings.items():
            if settings.setdefault(name, value) != value:
                raise _differ(name, {m: x.settings[name] for m, x in modules.items()})
    return settings


def _dropout_of(modules: Modules, *, has_experts: bool) -> float:
    """PEFT's one dropout of an adapter. It skips embeddings."""
    layers = [x.adapter for x in modules.values() if x.adapter.layout.kind != "embedding"]
    dropouts = {adapter.dropout for adapter in layers}
    dropout = 0.0 if has_experts else max(dropouts, default=0.0)
    if dropouts - {dropout}:
        shown = ", ".join(f"{p:g}" for p in sorted(dropouts))
        warn(
            "PEFT has one `lora_dropout` for all layers, and none beside arrays of experts. These "
            f"layers have {shown}, and {dropout:g} was written. It matters only in training."
        )
    return dropout


def with_pattern(setting: Setting | None, numbers: Mapping[str, float]) -> dict[str, object]:
    """A setting with a number, and a pattern for the modules with a different number."""
    if setting is None:
        return {}
    numbers = {name: int(x) if float(x).is_integer() else x for name, x in numbers.items()}
    usual = collections.Counter(numbers.values()).most_common(1)[0][0]
    unusual = {name: number for name, number in numbers.items() if number != usual}
    if not unusual:
        return {setting.name: usual, **({setting.pattern: {}} if setting.pattern else {})}
    if setting.by_name:
        ends = tuple(f".{name}" for name in unusual)
        has_pattern = not any(name.endswith(ends) for name in numbers)
    else:
        # PEFT matches a pattern at the end of a name, unless the pattern marks the beginning.
        unusual = {f"^{re.escape(name)}": number for name, number in unusual.items()}
        has_pattern = bool(setting.pattern)
    if not has_pattern:
        raise _differ(setting.name, numbers)
    return {setting.name: usual, setting.pattern: unusual}


def _differ(name: str, values: Mapping[str, object]) -> MisfitError:
    lines = (f"{module}: {value!r}" for module, value in values.items())
    return MisfitError(
        f"PEFT has one `{name}` for all layers of an adapter of this type, but these have "
        f"several:\n{bullets(lines, 8)}\nSave each into a directory of its own"
    )


def targets(adapted: Iterable[str], names: Iterable[str] | None) -> list[str] | str:
    """The names of the adapted modules, as a regex if a name could match the end of another name.

    - `names`: of all modules; `None` if they are unknown.
    """
    adapted = sorted(adapted)
    ends = tuple(f".{name}" for name in adapted)
    if names is None or any(name.endswith(ends) and name not in adapted for name in names):
        # PEFT finds an embedding to tie by its short name.
        short = [EMBEDDING] if any(map(is_embedding, adapted)) else []
        return "|".join(map(re.escape, [*adapted, *short]))
    return adapted
