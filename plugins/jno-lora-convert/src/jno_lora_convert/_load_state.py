"""Read LoRA from states of other libraries, and from their files.

The files are safetensors of diffusers and kohya, and checkpoints of Orbax.
"""

import os
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import PyTree

from jno.lora import PeftFormatError, Registry
from jno.lora.extending import (
    bullets,
    default_registry,
    expect_model,
    norms_around,
    put_around,
    show_path,
    warn,
)
from jno_lora_peft.errors import MisfitError
from jno_lora_peft.files import CONFIG, not_finite
from jno_lora_peft.layouts import Shape
from jno_lora_peft.loading import build_adapters, checked_layout
from jno_lora_peft.names import Rename
from jno_lora_peft.ties import SHARED, Ties
from jno_lora_peft.types import TYPES
from jno_lora_peft.types.type import Converted, Module, Tensors, floating

from ._pairs import first_factor
from ._placing import Placed, Placer
from ._states import State, open_state

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

    An array is recognised by the end of its name: `kernel_lora_a` and `kernel_lora_b` (Qwix),
    `lora_a.kernel` (MaxText's models of Linen), `lora_a` (`nnx.LoRA`), `lora_kernel_a` (Keras),
    `lora_A.weight` (PEFT and diffusers), `lora.down.weight` (former diffusers), `lora_down.weight`,
    `lora_mid.weight` and `alpha` (kohya). The beginning of the name is the path of the layer. The
    outputs equal the library's.

    **Arguments:**

    - `model`: any pytree, adapted or not.
    - `state`: any pytree of arrays, such as `nnx.state(model, nnx.LoRAParam)` or a dict by whole
        names; a safetensors file; or a folder of Orbax (`jno-lora[orbax]`), which is one step of
        Tunix's `CheckpointManager`, or a tree.
    - `alpha`: the scale of an update is `alpha / rank`. Qwix has `alpha` in its `LoraRule`, not in
        its arrays, so it must be given, unless MaxText wrote it beside the arrays. In states of
        other libraries, it applies to layers without an alpha, which by default have scale 1; with
        PEFT's names (`base_model.model.`), it is required.
    - `rename`: from names of layers in the state to paths here, as in `load_peft`, but a function
        gets the name with slashes. If the state has one array for a stack of layers and the model
        has a list of layers, layer 3 is called `decoder/layers/mlp/wi_0[3]`.
    - `prefix`: the start of the names to read, such as `"unet."` or `"lora_unet_"`. All other
        arrays are skipped.
    - `stack_axis`: the axis of Qwix's arrays that runs over the layers of a stack: 0 for
        `nnx.vmap`, 1 for MaxText. Needed only if the shapes are ambiguous.
    - `registry`: as for `load_peft`.

    **Returns:** the model with `LoRA` around the layers, in at least float32. Arrays with NaN or
    infinity are loaded with a `JnoLoraWarning`.

    **Raises:** `PeftFormatError` that lists all arrays that do not fit, or have an unknown name, or
    for a file that cannot be read; `SelectionError` for a bad `rename`, a `Net` or a missing
    `alpha`; `MissingLibraryError` for a folder without Orbax.
    """
    expect_model(model, "load_lora_state")
    source = _read_state(state)
    placer = Placer(model, rename, stack_axis)
    norms, ties = norms_around(model, placer.modules), Ties(model)
    by_path: dict[str, dict[Shape, Converted]] = {}
    numbers: dict[str, np.ndarray] = {}
    for placed in placer.place(source.tree, prefix):
        key = placed.pair.key
        with placer.problems.of(show_path(key)):
            alpha_here = placed.pair.alpha(source, alpha)
            arrays = floating(
                {name: np.asarray(x) for name, x in placed.pair.arrays.items() if name != "alpha"}
            )
            numbers |= {f"{key}: {name}": array for name, array in arrays.items()}
            for (path, index), tensors in zip(placed.places, _tensors(placed, arrays), strict=True):
                layer, rank = placer.modules[path], len(next(iter(tensors.values())))
                checked_layout(layer, path, norms)
                if ties.is_shared(path):
                    raise MisfitError(SHARED)
                module = Module(
                    name=key,
                    settings=source.settings_for(key),
                    rank=rank,
                    alpha=float(rank) if alpha_here is None else alpha_here,
                    tensors=tensors,
                    shared={},
                    layer=layer,
                    index=index,
                    layout=placed.layout,
                )
                by_path.setdefault(path, {})[index] = TYPES["LORA"].read(module)
    adapters = build_adapters(by_path, placer.modules, default_registry(registry), placer.problems)
    placer.problems.refuse("The state does not fit the model", "Nothing was loaded.")
    if lines := not_finite(numbers):
        warn(f"Arrays of the state hold NaN or infinity:\n{bullets(lines)}")
    return put_around(model, adapters)


def _tensors(placed: Placed, arrays: Tensors) -> list[Tensors]:
    """PEFT's tensors of each layer of a pair.

    Linear layers and convolutions of size 1 are interchangeable.
    """
    A, B, layout = first_factor(arrays), arrays["B"], placed.layout
    if placed.axis is None:
        A, B = A[None], B[None]
    else:
        A, B = np.moveaxis(A, placed.axis, 0), np.moveaxis(B, placed.axis, 0)
    tensors: list[Tensors] = []
    for a, b in zip(A, B, strict=True):
        if placed.pair.source.inputs_first:
            by_channel = a.reshape(*layout.kernel, layout.inputs, -1)
            a, b = np.moveaxis(by_channel, (-1, -2), (0, 1)), b.reshape(len(b), -1).T
        named = zip(layout.pair("lora", len(a)).values(), (a, b), strict=True)
        tensors.append({name: _in_shape(array, shape) for (name, shape), array in named})
    return tensors


def _in_shape(array: np.ndarray, shape: Shape) -> np.ndarray:
    """The array in this shape, if both are one matrix, with or without a kernel of size 1."""
    same = array.shape[:2] == shape[:2] and {*array.shape[2:], *shape[2:]} <= {1}
    return array.reshape(shape) if same else array


def _read_state(state: PyTree | str | os.PathLike[str]) -> State:
    """The state in a file or a folder, or a tree unchanged. **Raises:** `PeftFormatError`."""
    if not isinstance(state, str | os.PathLike):
        return State(state)
    path = Path(state)
    folder = path if path.is_dir() else path.parent
    if (folder / CONFIG).exists():
        raise PeftFormatError(
            f"{os.fspath(folder)!r} holds an adapter of PEFT, whose scale is in {CONFIG}. Read it "
            "by load_peft(model, directory)"
        )
    return open_state(path)
