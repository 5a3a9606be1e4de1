"""Saving a model's adapters as PEFT's files."""

import collections
import re
from collections.abc import Mapping
from typing import Any

from jaxtyping import PyTree

from jno.lora import PeftFormatError
from jno.lora.extending import adapted_layers, bullets, expect_model, module_paths, show_path

from ._files import PREFIX, Directory, write
from ._names import Rename, module_name
from ._updates import MisfitError, alpha_for
from ._written import Written, written


def save_peft(model: PyTree, directory: Directory, *, rename: Rename = None) -> None:
    """Write the adapters of `model` as one adapter of PEFT, for `PeftModel.from_pretrained`.

    LoRA, rsLoRA, DoRA and IA³ are written as such; LoRA-FA, PiSSA, MiLoRA, LoRA-XS and VeRA as LoRA
    with the same update (of twice the rank for PiSSA and MiLoRA), as is what mixes LoRA and rsLoRA.
    The layers themselves are not written: PEFT puts the adapters around its own.

    **Arguments:**

    - `model`: an adapted model.
    - `directory`: made if it does not exist. An adapter in it is replaced.
    - `rename`: from the paths of layers here to PEFT's names of modules: a table of regular
        expressions and replacements, each used in turn on the path (`{"^": "model/"}`) before its
        slashes become dots, or a function of the path that returns the dotted name. Each layer of a
        stack has a path such as `layers/q_proj[3]`.

    **Raises:** `PeftFormatError` that lists every adapter without an exact equivalent in PEFT, and
    if PEFT cannot keep these variants together, an array cannot be read (tracers, donated arrays),
    or the files cannot be written: the old ones are whole then, or without a configuration, so that
    nothing loads. `SelectionError` for a bad `rename` or model.
    """
    expect_model(model, "save_peft")
    problems: list[str] = []
    modules: dict[str, Written] = {}
    for path, node in adapted_layers(model):
        try:
            for one in written(node, path):
                _add(modules, one, rename)
        except MisfitError as err:
            where = f"{show_path(path)} ({type(node).__name__})"
            problems += [f"{where}: {line}" for line in err.args]
    if problems:
        raise PeftFormatError(
            f"These adapters have no exact equivalent in PEFT:\n{bullets(problems)}\n"
            "Nothing was written."
        )
    if not modules:
        raise PeftFormatError("The model carries no adapters to save. Save before merging.")
    config = _config(modules, _common_variant(modules))
    config["target_modules"] = _targets(modules, model, rename)
    tensors = {
        f"{PREFIX}{module}.{name}": tensor
        for module, one in modules.items()
        for name, tensor in one.tensors.items()
    }
    write(directory, config, tensors)


def _add(modules: dict[str, Written], one: Written, rename: Rename) -> None:
    module = module_name(one.path, rename)
    if "[" in module:
        raise MisfitError(
            "it is a stack of layers, and each has a name of its own in PEFT. Give the names with "
            r'`rename`, such as rename={r"(\w+)\[(\d+)\]$": r"\2/\1"} for layers/3/q_proj'
        )
    if not module or module.startswith(".") or module.endswith("."):
        raise MisfitError(
            f"PEFT cannot call a module {module!r}. Give it a name with `rename`, such as "
            'rename={"^$": "linear"} for a model that is one layer'
        )
    if module in modules:
        raise MisfitError(f"it has PEFT's name {module!r}, as {modules[module].path!r} has")
    modules[module] = one


def _common_variant(modules: Mapping[str, Written]) -> str:
    by_variant: dict[str, list[str]] = {}
    for one in modules.values():
        by_variant.setdefault(one.variant, []).append(one.path)
    if by_variant.keys() == {"lora", "rslora"}:
        return "lora"  # every rsLoRA is a LoRA with another alpha
    if len(by_variant) == 1:
        return next(iter(by_variant))
    lines = (
        f"{variant}: {', '.join(map(show_path, paths[:3]))}{', ...' if len(paths) > 3 else ''}"
        for variant, paths in by_variant.items()
    )
    raise PeftFormatError(
        f"One adapter of PEFT is of one variant, but these are of several:\n{bullets(lines)}\n"
        "Save each into a directory of its own (`unwrap_lora` a copy of the others' layers); PEFT "
        "loads several adapters into one model."
    )


def _config(modules: Mapping[str, Written], variant: str) -> dict[str, Any]:
    unset = ("task_type", "base_model_name_or_path", "modules_to_save")
    general = dict.fromkeys(unset) | {"inference_mode": True, "fan_in_fan_out": False}
    if variant == "ia3":
        return general | {"peft_type": "IA3", "feedforward_modules": []}
    ranks = {module: one.rank for module, one in modules.items()}
    alphas = {
        module: _number(alpha_for(variant, one.rank, one.scale, one.alpha))
        for module, one in modules.items()
    }
    rank, rank_pattern = _usual_and_others(ranks)
    alpha, alpha_pattern = _usual_and_others(alphas)
    return general | {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": rank_pattern,
        "alpha_pattern": alpha_pattern,
        "bias": "none",
        "init_lora_weights": True,
        "lora_dropout": 0.0,
        "use_dora": variant == "dora",
        "use_rslora": variant == "rslora",
    }


def _usual_and_others(numbers: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The most common number, and a pattern for each module that has another."""
    usual = collections.Counter(numbers.values()).most_common(1)[0][0]
    # PEFT looks for a pattern at the end of a name, unless it says where the name begins.
    return usual, {f"^{re.escape(m)}": other for m, other in numbers.items() if other != usual}


def _number(value: float) -> int | float:
    return int(value) if value.is_integer() else value


def _targets(modules: Mapping[str, Written], model: PyTree, rename: Rename) -> list[str] | str:
    """The names of the modules; as a regex if one may be the end of a name that is not meant."""
    names = sorted(modules)
    ends = tuple(f".{name}" for name in names)
    # A function may know the names of adapted layers only, so the other names are unknown.
    if callable(rename) or any(
        name.endswith(ends) and name not in modules
        for name in (module_name(path, rename) for path in module_paths(model))
    ):
        return "|".join(map(re.escape, names))
    return names
