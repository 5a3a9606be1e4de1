"""Reading LoRA from states of other libraries."""

import dataclasses
import os
from typing import TypeVar

import numpy as np
from jaxtyping import PyTree

from jno.lora import Registry, SelectionError
from jno.lora.extending import (
    bullets,
    default_registry,
    expect_model,
    norms_around,
    put_around,
    show_path,
    warn,
)

from .._errors import MisfitError
from .._names import Rename
from ..files.directory import not_finite
from ..loading import check_free, collected
from ..model.layouts import Shape
from ..model.ties import SHARED, Ties
from ..types import TYPES, Converted, Module, Tensors, floating
from ._factors import check_alpha, from_inputs_first, from_torch
from ._pairs import Pair, pairs_of
from ._placed import Placed, Placer
from ._sources import State, read_state

M = TypeVar("M")


def load_lora_state(
    model: M,
    state: PyTree | str | os.PathLike[str],
    *,
    alpha: float | None = None,
    rename: Rename = None,
    prefix: str = "",
    stack_axis: int | None = None,
    registry: Registry | None = None,
) -> M:
    """`model` with the LoRA of a state of Qwix, Tunix or MaxText, or of diffusers or kohya.

    An array is known by the end of its name: `kernel_lora_a` and `kernel_lora_b` (Qwix),
    `lora_a.kernel` (MaxText's models of Linen), `lora_A.weight` (PEFT and diffusers),
    `lora.down.weight` (former diffusers), `lora_down.weight`, `lora_mid.weight` and `alpha`
    (kohya). The rest of the name is the path of the layer. The outputs equal the library's.

    **Arguments:**

    - `model`: any pytree, adapted or not.
    - `state`: any pytree of arrays, such as `nnx.state(model, nnx.LoRAParam)` or a dict by whole
        names; a safetensors file; or a folder of Orbax (`jno-lora[orbax]`), which is one step of
        Tunix's `CheckpointManager`, or a tree.
    - `alpha`: the scale of an update is `alpha / rank`. Qwix has `alpha` in its `LoraRule`, not in
        its arrays, so it must be given, unless MaxText wrote it beside the arrays. In states of
        other libraries, it is for layers without an alpha; by default they have the scale 1, but
        names of PEFT (`base_model.model.`) need it.
    - `rename`: from names of layers in the state to paths here, as in `load_peft`, but a function
        gets the name with slashes. If the state has an array for all layers of a stack, and the
        model a list of layers, layer 3 has the name `decoder/layers/mlp/wi_0[3]`.
    - `prefix`: the start of the names to read, such as `"unet."` or `"lora_unet_"`. Other arrays
        are left out.
    - `stack_axis`: the axis of Qwix's arrays that counts layers of a stack: 0 for `nnx.vmap`, 1 for
        MaxText. Needed only if the shapes leave it open.
    - `registry`: as for `load_peft`.

    **Returns:** the model, with `LoRA` around the layers, in float32 at least. Arrays that hold NaN
    or infinity are loaded, with a `JnoLoraWarning`.

    **Raises:** `PeftFormatError` that lists all arrays that do not fit, or have an unknown name, or
    for a file that cannot be read; `SelectionError` for a bad `rename`, a `Net` or a missing
    `alpha`; `MissingLibraryError` for a folder without Orbax.
    """
    expect_model(model, "load_lora_state")
    if alpha is not None:
        check_alpha(alpha)
    read = read_state(state)
    pairs, lines = pairs_of(read.tree, prefix)
    placer = Placer(model, rename, stack_axis)
    placer.problems += lines
    by_path: dict[str, dict[Shape, Converted]] = {}
    numbers: dict[str, np.ndarray] = {}
    norms, ties = norms_around(model, placer.modules), Ties(model)
    for placed in placer.place(pairs) if pairs or not lines else []:
        with placer.problems.of(show_path(placed.pair.key)):
            arrays = {n: np.asarray(array) for n, array in placed.pair.arrays.items()}
            scale = _alpha(placed.pair, arrays.pop("alpha", None), read, alpha)
            arrays, layout = floating(arrays), placed.layout
            if placed.pair.inputs_first:
                # Options that Torch's LoRA leaves out when it runs the update. Flax has them.
                layout = dataclasses.replace(layout, odd="")
            config, _ = read.config_for(placed.pair.key)
            settings = {} if config is None else config.settings
            numbers |= {f"{placed.pair.key}: {name}": array for name, array in arrays.items()}
            for (path, index), tensors in zip(placed.places, _tensors(placed, arrays), strict=True):
                layer = placer.modules[path]
                check_free(layer, path, norms)
                if ties.is_shared(path):
                    raise MisfitError(SHARED)
                rank = len(next(iter(tensors.values())))
                alpha_here, key = float(rank) if scale is None else scale, placed.pair.key
                module = Module(key, settings, rank, alpha_here, tensors, {}, layer, index, layout)
                by_path.setdefault(path, {})[index] = TYPES["LORA"].read(module)
    registry = default_registry(registry)
    adapters = collected(by_path, placer.modules, registry, placer.problems)
    placer.problems.refuse("The state does not fit the model", "Nothing was loaded.")
    if lines := not_finite(numbers):
        warn(f"Arrays of the state hold NaN or infinity:\n{bullets(lines)}")
    return put_around(model, adapters)


def _tensors(placed: Placed, arrays: Tensors) -> list[Tensors]:
    """PEFT's tensors of each layer of a pair."""
    if not placed.pair.inputs_first:
        return [from_torch(arrays, placed.layout)]
    if placed.axis is None:
        return [from_inputs_first(arrays["A"], arrays["B"], placed.layout)]
    first, second = (np.moveaxis(arrays[name], placed.axis, 0) for name in "AB")
    return [
        from_inputs_first(*factors, placed.layout) for factors in zip(first, second, strict=True)
    ]


def _alpha(
    pair: Pair, beside: np.ndarray | None, state: State, given: float | None
) -> float | None:
    """The alpha of a pair, or `None` for a scale of 1."""
    if beside is not None:
        # Of any dtype: kohya saves whole numbers, and a zero for a scale of 1.
        return float(beside.item()) or None
    config, name = state.config_for(pair.key)
    if config is not None:
        return config.alpha(name)
    if state.alpha is not None and given not in (None, state.alpha):
        raise SelectionError(f"alpha={given!r}, but the state was saved with alpha={state.alpha!r}")
    alpha = state.alpha if given is None else given
    if alpha is None and (pair.kind == "peft" or pair.inputs_first):
        raise SelectionError(
            "PEFT and Qwix scale an update by alpha / rank, and their alpha is not in the arrays. "
            "Read a directory of PEFT by load_peft, or give the alpha of adapter_config.json or of "
            "Qwix's LoraRule: load_lora_state(model, state, alpha=16)"
        )
    return alpha
