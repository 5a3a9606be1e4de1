"""`extract_lora`: the plain LoRA nearest to the change from a base to its fine-tuned copy."""

import contextlib
from typing import Literal, TypeVar, get_args

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree

from jno.lora import LoRAWrapper, MatrixAdapter, Registry, SelectionError
from jno.lora.extending import (
    adapted_layers,
    bullets,
    default_registry,
    enclosing,
    errors_as,
    expect_model,
    held_dtype,
    layers_at,
    modules_by_path,
    norms_around,
    path_str,
    refusal_of_template,
    replace_layers,
    run,
    safely_applies,
    show_path,
    tracked,
)

from ._factors import norm_of
from ._plain_lora import (
    Truncation,
    adapted_arrays,
    changed_arrays,
    in_wide_dtypes,
    is_array,
    lora_classes,
    nearest_lora,
    update_between,
)
from ._report import UpdateReport, UpdateRow

M = TypeVar("M")
Leftovers = Literal["raise", "keep", "drop"]


def extract_lora(
    base: M,
    tuned: M,
    *,
    rank: int | None = None,
    energy: float | None = None,
    leftovers: Leftovers = "raise",
    registry: Registry | None = None,
) -> tuple[M, UpdateReport]:
    """`base` with the plain LoRA that is nearest to its fine-tuned copy `tuned`.

    A singular value decomposition cuts the difference of each matrix, in float32 at least, one
    layer after another. No other update of the same rank is nearer in the Frobenius norm (Eckart
    and Young). A stack of layers gets one rank. Layers whose matrices are equal get no adapter.

    **Arguments:**

    - `base`, `tuned`: plain models with the same structure, shapes and constants (numbers that are
        not arrays), not traced. Merge adapters first. `tuned` may have other precisions.
    - `rank`: the rank to keep.
    - `energy`: in `(0, 1]`: take the smallest rank of each layer that keeps this fraction of the
        squared Frobenius norm of the difference. Give either `rank` or `energy`.
    - `leftovers`: what happens to changed arrays that LoRA does not adapt, such as biases and
        norms: `"raise"` lists them in an error, `"keep"` puts their new values into the base, and
        `"drop"` leaves the base as it is. The report lists them, too. Files of adapters do not hold
        arrays of the base, so save the base of `"keep"` as well.
    - `registry`: where the LoRA classes are looked up, instead of among the installed plugins.

    **Returns:** the adapted model, and an `UpdateReport` with each layer's rank, error and energy.
    It says how much of the change is kept (`kept`). Below 90 %, it warns, because the outputs may
    differ a lot from `tuned`.

    **Raises:** `SelectionError` if the models differ in structure or constants, or carry adapters,
    if arrays are left over, or if an argument makes no sense; `WrapperError` that names a layer
    whose difference has NaN or infinity; `PluginError` without plain LoRA (the zoo).
    """
    for name, plain in {"base": base, "tuned": tuned}.items():
        _check_plain(name, plain)
    _check_same_structure(base, tuned)
    truncation = Truncation(rank, energy)
    if truncation.is_open:
        raise SelectionError("Give `rank` or `energy`, which say how much of the update to keep.")
    if leftovers not in (options := get_args(Leftovers)):
        raise SelectionError(f"`leftovers` must be one of {options}, but is {leftovers!r}.")
    classes = _classes_by_path(base, lora_classes(default_registry(registry)))
    adapted = {
        f"{path}/{array}" if path else array
        for path, layer in layers_at(base, classes).items()
        for array in adapted_arrays(classes[path], layer)
    }
    changed = changed_arrays(base, tuned)
    left = [path for path in changed if path not in adapted]
    if left and leftovers == "raise":
        raise SelectionError(
            f"LoRA does not adapt these arrays, which differ:\n{bullets(map(show_path, left))}\n"
            'leftovers="keep" puts their values into the base of the result, and leftovers="drop" '
            "leaves them out."
        )
    model = _with_arrays_of(tuned, base, left) if leftovers == "keep" else base
    changed_layers = dict.fromkeys(layer for _, layer in enclosing(changed, classes))
    before, after = layers_at(model, changed_layers), layers_at(tuned, changed_layers)
    adapters: dict[str, LoRAWrapper] = {}
    rows: list[UpdateRow] = []
    with contextlib.closing(tracked(before.items(), "Decomposing")) as shown:
        for path, layer in shown:
            cls = classes[path]
            with errors_as(f"extract LoRA at {show_path(path)!r}"):
                wide_layers = in_wide_dtypes(layer, after[path])
                update = run(update_between, cls, *wide_layers, beside=layer)
                lora, error = nearest_lora(cls, layer, update, truncation)
            adapters[path] = lora
            size = norm_of(update.values())
            rows.append(UpdateRow(path, type(layer), cls, lora.rank, error, size))
    return replace_layers(model, adapters), UpdateReport(tuple(rows), tuple(left)).warn_of_loss()


def _check_plain(name: str, model: PyTree) -> None:
    """**Raises:** `SelectionError` unless `model` has arrays, and no adapters."""
    expect_model(model, "extract_lora")
    if refusal := refusal_of_template(model, "Give the model itself."):
        raise SelectionError(f"`{name}`: {refusal}")
    for path, _ in adapted_layers(model):
        raise SelectionError(
            f"`{name}` has an adapter at {show_path(path)!r}. Call merge_lora first."
        )


def _check_same_structure(base: PyTree, tuned: PyTree) -> None:
    before, after = _forms(base), _forms(tuned)
    unlike = [path for path in before | after if before.get(path) != after.get(path)]
    if unlike:
        path = max(unlike, key=len)  # not the layers around the difference
        shown, *_ = before.get(path, ["nothing"])
        shown_tuned, *_ = after.get(path, ["nothing"])
        raise SelectionError(
            f"The models differ in layers or constants: at {show_path(path)!r}, {shown} in `base`, "
            f"{shown_tuned} in `tuned`."
        )


def _forms(model: PyTree) -> dict[str, tuple[object, ...]]:
    """By path, the name and structure of each module, and the shape, value or class of a leaf."""
    forms: dict[str, tuple[object, ...]] = {
        path: (type(layer).__name__, jax.tree.structure(layer))
        for path, layer in modules_by_path(model).items()
    }
    for keys, leaf in jtu.tree_leaves_with_path(model):
        if is_array(leaf):
            form = str(leaf.shape)
        else:
            form = repr(leaf) if np.isscalar(leaf) else type(leaf).__name__
        forms[path_str(keys)] = (form,)
    return forms


def _classes_by_path(
    model: PyTree, classes: list[type[MatrixAdapter]]
) -> dict[str, type[MatrixAdapter]]:
    """The class of plain LoRA for each of the outermost layers that have one."""
    layers = modules_by_path(model).items()
    options = {path: next((c for c in classes if safely_applies(c, x)), None) for path, x in layers}
    chosen = {path: cls for path, cls in options.items() if cls is not None}
    inside = {path for path, _ in enclosing(chosen, chosen)} | norms_around(model, chosen).keys()
    return {path: cls for path, cls in chosen.items() if path not in inside}


def _with_arrays_of(source: M, model: M, paths: list[str]) -> M:
    """`model` with the arrays of `source` at these paths, in the dtypes of `model`."""

    def take(keys: jtu.KeyPath, old: object, new: object) -> object:
        return jnp.asarray(new, held_dtype(old)) if path_str(keys) in paths else old

    return jtu.tree_map_with_path(take, model, source)
