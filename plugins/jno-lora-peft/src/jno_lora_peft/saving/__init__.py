"""Saving a model's adapters as PEFT's files."""

import os
from collections.abc import Sequence
from typing import Any

from jaxtyping import PyTree

from jno.lora import Net, PeftFormatError
from jno.lora.extending import expect_model

from .._errors import MisfitError
from .._names import Rename
from ..files.directory import Directory, write
from ..model.ties import Ties
from ..types import TYPE_OF
from ._adapters import WrittenAdapters, factors_for_peft as factors_for_peft
from ._experts import ExpertArrays
from ._settings import check_task, common_variant, settings_of
from ._trained_arrays import TrainedArrays


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
) -> None:
    """Write the adapters of `model` as one adapter of PEFT, for `PeftModel.from_pretrained`.

    A method that PEFT has as well is written as PEFT's type. Another method is written as LoRA with
    the same update if the update is a product of two factors of low rank (of twice the rank for
    methods such as PiSSA, which change the weight at the start). So is a mix of LoRA and rsLoRA.
    The page "Coming from PEFT" lists them. The adapted layers are not written, because PEFT puts
    the adapters around its own layers.

    Trained arrays outside the adapters are written as PEFT's `modules_to_save`: arrays that a `Net`
    trains, arrays that `modules_to_save` names, and arrays that `load_peft` read from a file and
    that did not change since. A plain model does not tell which arrays were trained. A model
    without adapters is written with these arrays alone, in the type that was read or as
    `LN_TUNING`.

    **Arguments:**

    - `model`: a `Net`, or an adapted model.
    - `directory`: made if it does not exist. An adapter in it is replaced.
    - `rename`: from the paths of layers here to PEFT's names of modules: a table of regular
        expressions and replacements, each used in turn on the path (`{"^": "model/"}`) before its
        slashes become dots, or a function of the path that returns the dotted name. Each layer of a
        stack has a path such as `layers/q_proj[3]`.
    - `modules_to_save`: a regular expression for the paths of arrays outside the adapters, such as
        `"^classifier/|norm/"`: their modules are written whole. It replaces what a `Net` trains.
    - `target_parameters`: regular expressions for the paths of stacks that PEFT has as one array
        of all experts, as in fused mixtures of experts: the last axis of the stack are the experts.
        PEFT's name of the array comes from `rename`, as for a layer. Of several arrays in one
        module, each needs an expression, in the order in which Torch's module defines the arrays:
        `["gate_up_proj$", "down_proj$"]`.
    - `tied`: whether an output head reads the table of an adapted embedding, as for `load_peft`. An
        adapter that a head sees too is written with PEFT's `ensure_weight_tying`; an adapter that
        acts on lookups alone is in an `Untied`.
    - `base_model_name_or_path`: the model that the adapter is for: its name on a hub, or a path.
    - `task_type`: PEFT's name of the task, such as `"CAUSAL_LM"`, by which `AutoPeftModel` chooses
        the model's class. PEFT looks for the invocation of aLoRA in `"CAUSAL_LM"` alone, which is
        the default there.

    **Raises:** `PeftFormatError` that lists every adapter, or every trained array, without an exact
    equivalent in PEFT; also if a setting is malformed, the adapters are of kinds that PEFT cannot
    keep together, an array cannot be read (tracers, donated arrays), or the files cannot be
    written: then the old files are whole, or without a configuration, so that nothing loads.
    `SelectionError` for a bad `rename`, `modules_to_save`, `target_parameters` or model.
    """
    check_task(task_type)
    settings: dict[str, Any] = {
        "base_model_name_or_path": base_model_name_or_path and os.fspath(base_model_name_or_path),
        "task_type": task_type,
    }
    trainable = None
    if isinstance(model, Net):
        model, trainable = model.module, model.trainable
    expect_model(model, "save_peft")
    ties = Ties(model, tied)
    adapters = WrittenAdapters(model, trainable, rename, ties, ExpertArrays(target_parameters))
    adapters.experts.check_used()
    title = "These adapters have no exact equivalent in PEFT"
    adapters.problems.refuse(title, "Nothing was written.")
    modules = adapters.modules
    arrays = TrainedArrays(model, rename, ties, modules)
    # Without adapters, only arrays that `load_peft` read are meant.
    arrays.choose(trainable if modules else None, modules_to_save)
    arrays.problems.refuse(
        "PEFT cannot save these arrays beside the adapters",
        "Nothing was written. To write the adapters alone, save `net.module`.",
    )
    if modules:
        try:
            settings |= settings_of(adapters, arrays, model, rename, task_type)
            shared = TYPE_OF[common_variant(modules)].shares(modules)
        except MisfitError as err:
            raise PeftFormatError(f"{err}. Nothing was written.") from err
        write(directory, settings, {**adapters.tensors, **arrays.tensors, **shared})
    elif arrays.names:
        settings_alone, tensors = arrays.alone()
        write(directory, {**settings, "inference_mode": True, **settings_alone}, tensors)
    else:
        raise PeftFormatError("The model carries no adapters to save. Save before merging.")
