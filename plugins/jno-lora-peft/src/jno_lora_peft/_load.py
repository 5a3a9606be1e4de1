"""From PEFT's files to adapters around the layers of a model."""

import os
from typing import TypeVar

from jno.lora import AdapterSet, PeftFormatError, Registry
from jno.lora.extending import bullets, default_registry, expect_model, put_around, warn

from ._config import Config
from ._files import Directory, not_finite, read
from ._keys import by_module
from ._loading import Loading
from ._names import Rename

M = TypeVar("M")


def load_peft(
    model: M, directory: Directory, *, rename: Rename = None, registry: Registry | None = None
) -> M:
    """`model` with the adapter that PEFT saved into `directory`.

    LoRA, rsLoRA and DoRA become the adapters of those names; IA³ that scales outputs becomes IA³;
    VeRA, AdaLoRA, LoHa and LoKr become LoRA with the same update, of the rank that this takes. The
    outputs are PEFT's. An adapter without an exact equivalent here is an error. The arrays are
    float32 at least.

    Trained biases and the modules of `modules_to_save` take the place of the model's own arrays, in
    the dtype of the model. So does a bias that PEFT changes by its adapter (`lora_bias`, IA³ on a
    layer with a bias): `unwrap_lora` does not bring the former one back.

    **Arguments:**

    - `model`: any pytree, adapted or not. Its layers are found by PEFT's names for them, with
        slashes for dots.
    - `directory`: with `adapter_config.json` and `adapter_model.safetensors`.
    - `rename`: from PEFT's names of modules to the paths of layers here: a table of regular
        expressions and replacements, each used in turn on the slash-joined name, such as
        `{"^model/": ""}`, or a function of the dotted name. A path that ends in `[3]` is that layer
        of a stack; all layers of a stack must be there.
    - `registry`: where adapter classes are looked up, instead of among the installed plugins. Other
        plugins than the zoo are loaded only for layers that its adapters are not for.

    **Returns:** the model, with the adapters around its layers. Those it carried stay. Tensors that
    hold NaN or infinity are loaded, with a `JnoLoraWarning`.

    **Raises:** `PeftFormatError` for files that are damaged, or have no exact equivalent here, and
    one that lists everything that does not fit the model; `SelectionError` for a bad `rename`,
    a `Net`, two places of one path, or an adapter that cannot be built; `PluginError` if a plugin
    is missing.
    """
    expect_model(model, "load_peft")
    values, tensors = read(directory)
    config = Config.parse(values)
    loading = Loading(config, default_registry(registry))
    loading.read(by_module(tensors, config.type), model, rename)
    if loading.problems:
        raise PeftFormatError(
            f"The {config.type} adapter does not fit the model:\n{bullets(loading.problems)}\n"
            "Nothing was loaded."
        )
    if lines := not_finite(tensors):
        warn(f"Tensors of {os.fspath(directory)!r} hold NaN or infinity:\n{bullets(lines)}")
    changed = loading.arrays.put_into(model)
    return put_around(changed, AdapterSet(loading.adapters))
