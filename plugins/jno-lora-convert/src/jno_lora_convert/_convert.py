"""Convert LoRA from the files of one project into files of another, or merge it into a base.

Every array of the source is used, or named in an error or in the report. The adapter is read into
memory, and the base array by array.
"""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jno.lora import PeftFormatError, SelectionError
from jno_lora_peft.bases import warn_of_another_base
from jno_lora_peft.errors import Problems
from jno_lora_peft.files import TENSORS
from jno_lora_peft.names import Rename

from ._adapter_files import AdapterFiles, match_modules
from ._arrays import Array, flat
from ._merge import Merge, match_weights
from ._pairs import find_pairs, weight_path
from ._reading import Options, read_loras
from ._states import open_state
from ._unfinished import unfinished
from ._updates import LayerLoRA

TARGETS = ("peft", "merged", "safetensors", "orbax")


@dataclasses.dataclass(frozen=True)
class Conversion:
    """The result of `convert_lora`.

    - `sources`: the projects whose names the arrays have; `modules`: rank and scale of each module.
    - `left`: arrays of the source that are not part of the adapter, and were not written.
    - `difference`: the largest difference between numbers of the updates before and after, or of
        merged weights to the sums in float64, if they were compared.
    """

    sources: list[str]
    modules: dict[str, tuple[int, float]]
    left: list[str]
    difference: float | None


def convert_lora(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    to: str,
    base: str | os.PathLike[str] | None = None,
    alpha: float | None = None,
    rename: Rename = None,
    prefix: str = "",
    stack_axis: int | None = None,
    transposed: str | None = None,
    tied: bool | None = None,
    verify: bool = False,
) -> Conversion:
    """Convert the LoRA in `source`, and write it to `out`.

    `source` is of openpi, gemma, Keras, EasyDeL, Levanter, Qwix, Tunix, MaxText, diffusers, kohya
    or PEFT: a file (`.safetensors`, `.h5`) or a folder (safetensors, PEFT, Orbax).

    **Arguments:**

    - `to`: `"peft"`, a directory that PEFT, vLLM and `load_peft` read; `"merged"`, the base with
        the updates, in the base's format; `"safetensors"`, one file with an alpha for each module,
        which `load_lora_state` reads; `"orbax"`, Qwix's names in a folder of Orbax.
    - `base`: the weights to merge into, by default the source's own, with the names of the source.
        For other names, convert to PEFT first, and merge the result. For other targets, the shapes
        of Torch's weights, which tell the inputs of an einsum of Keras.
    - `alpha`: for sources without an alpha in their arrays, as for `load_lora_state`. For rsLoRA,
        it is `alpha * sqrt(rank)`.
    - `rename`: from names in the source to names in PEFT or in the base, as for
        `load_lora_state`. openpi and gemma get the names of Transformers without it.
    - `prefix`, `stack_axis`: as for `load_lora_state`.
    - `transposed`: a regular expression for the names of linear layers with a weight `(in, out)` in
        Torch, such as the Conv1D of GPT-2. PEFT's `fan_in_fan_out` says the same.
    - `tied`: whether a head reads the table of an embedding, whose adapter PEFT uses for lookups
        alone; needed if the base has no `lm_head.weight`, and merged only if `False`.
    - `verify`: read the result, and compare each update in float64. Merged weights are checked by
        the proof of the source, if it has one, and get a proof themselves (not in Orbax's folders).

    `out` must not exist, and appears when it is complete. After a kill, a call with the same
    arguments resumes.

    **Returns:** a `Conversion`.

    **Raises:** `PeftFormatError` that lists the arrays without a use, factors that do not fit or
    hold NaN or infinity, and weights that are missing or ambiguous; also for a merged weight that
    overflows, and a difference beyond rounding. `CheckpointError` if merged weights are a fault by
    the source's proof. `SelectionError` for an alpha that is missing,
    and for an alpha, `rename`, `stack_axis` or `transposed` that no LoRA uses.
    """
    source, out, problems = Path(source), Path(out), Problems()
    if to not in TARGETS:
        raise SelectionError(f"to={to!r}, but the targets are {', '.join(TARGETS)}")
    if out.exists():
        raise PeftFormatError(f"{os.fspath(out)!r} exists. Give a new name.")
    options = Options(alpha, rename, prefix, stack_axis, transposed)
    state = open_state(source)
    contents = find_pairs(state.tree, prefix, problems)
    if state.configs:  # a file with a configuration has nothing but an adapter
        problems += [f"{key}: no array of LoRA has such a name" for key in contents.remaining]
    layers = read_loras(contents.pairs, state, options, problems)
    arrays, left = flat(state.tree), [*contents.remaining, *contents.skipped]
    if base is None:
        like, weights = source, {name: arrays[name] for name in left}
    else:
        like, weights = Path(base), flat(open_state(Path(base)).tree)
    by_path = {weight_path(name): array for name, array in weights.items()}
    if to == "merged":
        result = Merge(like, weights, match_weights(layers, weights, tied, problems))
        updates = [layer.update(module) for layer in layers for module in layer.modules]
        if base is None:
            left = []
        else:
            if (source / TENSORS).exists():
                warn_of_another_base(source, result.bases())
            problems += _lost({name: arrays[name] for name in contents.remaining}, by_path)
    else:
        updates = match_modules(layers, by_path, problems)
        dropouts = [x.settings.get("lora_dropout") or 0.0 for x in state.configs.values()]
        result = AdapterFiles(to, updates, max(dropouts, default=0.0))
        paths = {weight_path(f"{update.module.name}.weight") for update in updates}
        if base is not None and by_path.keys().isdisjoint(paths):
            problems.append(f"{os.fspath(base)!r} has none of these modules: use `rename`")
    problems.refuse("The LoRA cannot be converted", "Nothing was written.")
    _expect_use(options, layers)
    with unfinished(out, [source, like], (to, tied, options)) as place:
        result.write(place)
        difference = result.largest_difference(place) if verify else None
        if verify and isinstance(result, Merge):
            result.prove(place, source)
    return Conversion(
        sources=sorted({layer.pair.source.name for layer in layers}),
        modules={update.module.name: (update.rank, update.scale) for update in updates},
        left=left,
        difference=difference,
    )


def _lost(arrays: Mapping[str, Array], base: Mapping[str, Array]) -> list[str]:
    """A line for each array beside the LoRA that the base, by `weight_path`, does not hold."""
    return [
        f"{name}: it is not part of a LoRA, and the base has no equal array. If it was trained, "
        "put it into the base; otherwise, take it out of the source"
        for name, array in arrays.items()
        if not np.array_equal(array, base.get(weight_path(name), ()))
    ]


def _expect_use(options: Options, layers: list[LayerLoRA]) -> None:
    """**Raises:** `SelectionError` for an option that no module uses."""
    modules = [module for layer in layers for module in layer.modules]
    is_used = {
        "rename": any(module.is_renamed for module in modules),
        "transposed": any(module.is_transposed for module in modules),
        "stack_axis": any(module.index for module in modules),
    }
    for name, has_use in is_used.items():
        value = getattr(options, name)
        if value not in (None, "", {}) and not has_use:
            raise SelectionError(
                f"{name}={value!r} fits no module like {modules[0].name}. Correct it, or omit it."
            )
