"""Merge LoRA into the weights of a base, array by array."""

import dataclasses
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from jno.lora import PeftFormatError
from jno.lora.extending import tracked
from jno_lora_peft.errors import MisfitError, Problems
from jno_lora_peft.names import HEAD, is_embedding
from jno_lora_peft.proof import FILE as PROOF
from jno_lora_proof import Proof, sign_update, write_entries

from ._arrays import Array, flat
from ._orbax import save_like
from ._pairs import weight_path
from ._safetensors import map_safetensors, write_safetensors
from ._states import open_state, weight_files
from ._updates import LayerLoRA, Update, expect_close

_WIDE = ("float16", "bfloat16", "float32", "float64")
# Files of weights, which are not copied with the other files of a base.
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".gguf", ".msgpack", ".onnx")


@dataclasses.dataclass(frozen=True)
class Merge:
    """A base with updates.

    - `base`: the file or folder in whose format the result is written.
    - `weights`: its arrays, by name; `updates`: the updates of the modules in a weight, by name.
    """

    base: Path
    weights: Mapping[str, Array]
    updates: Mapping[str, list[Update]]

    def bases(self) -> dict[str, np.ndarray]:
        """The weights before merging, by the names of modules."""
        return {
            update.module.name: np.asarray(self.weights[name])[update.place]
            for name, updates in self.updates.items()
            for update in updates
        }

    def write(self, out: Path) -> None:
        """Write the merged weights in the format of the base, or as safetensors for Keras's file.

        Files that an earlier call finished stay as they are. Other files in a folder of safetensors
        are copied, except other weights and subfolders. For Orbax, all arrays are on the disk twice
        at the end, and not in memory.

        **Raises:** `PeftFormatError` if `out` must end in `.safetensors`, a dtype cannot be
        written, or a merged weight overflows.
        """
        if self.base.is_file():
            if out.suffix != ".safetensors":
                raise PeftFormatError(
                    f"{out.name!r} must end in .safetensors, as it is written so."
                )
            self._write_file(out, self.weights)
        elif files := weight_files(self.base):
            out.mkdir(exist_ok=True)
            for file in files:
                self._write_file(out / file.name, map_safetensors(file)[0])
            for file in self.base.iterdir():
                if file.is_file() and file.suffix not in _WEIGHTS:
                    shutil.copy2(file, out / file.name)
        else:
            # Orbax saves whole trees, so it gets arrays that are mapped from a file.
            arrays = out.with_name(f"{out.name}.arrays")
            self._write_file(arrays, self.weights)
            save_like(self.base, out, map_safetensors(arrays)[0])

    def prove(self, written: Path, source: Path) -> None:
        """Check the written weights by the proof of the source, and put one into safetensors files.

        **Raises:** `CheckpointError` if they are not the source's base with its updates, once.
        """
        after = flat(open_state(written).tree)
        if (source / PROOF).exists():
            merged, before = (self._by_title(state) for state in (after, self.weights))
            Proof.from_weights(merged, source, bases=before).raise_for_fault()
        if written.is_file() or weight_files(written):
            entries = {name: sign_update(after[name], self.weights[name]) for name in self.updates}
            write_entries(written, entries, str(self.weights[next(iter(entries))].dtype))

    def largest_difference(self, out: Path) -> float:
        """The largest difference of the written weights to the sums in float64.

        **Raises:** `PeftFormatError` if it is more than rounding, or a weight without an update
        differs.
        """
        written, largest = flat(open_state(out).tree), 0.0
        for name in tracked([*self.weights], "Verifying"):
            old, new = np.asarray(self.weights[name]), np.asarray(written[name])
            if name not in self.updates and old.tobytes() != new.tobytes():
                raise PeftFormatError(f"{name} has no update, and was written with other values")
            for update in self.updates.get(name, ()):
                before = old[update.place]
                total = update.added_to(before, np.float64)
                difference = expect_close(name, new[update.place], total, total - before)
                largest = max(largest, difference)
        return largest

    def merged(self, name: str) -> np.ndarray:
        """The weight with its updates, computed in float32 and rounded once."""
        weight = np.array(self.weights[name])
        if name not in self.updates:
            return weight
        dtype = np.promote_types(weight.dtype, np.float32)
        for update in self.updates[name]:
            total = update.added_to(weight[update.place], dtype)
            weight[update.place] = total.astype(weight.dtype)
        if not np.isfinite(weight).all():
            raise PeftFormatError(f"{name} has NaN or infinity in {weight.dtype} when merged.")
        return weight

    def _by_title(self, state: Mapping[str, Array]) -> dict[str, np.ndarray]:
        """The weights with updates, by the names of the source's proof."""
        found = [
            (update.module, update.in_torch(np.asarray(state[name])))
            for name, updates in self.updates.items()
            for update in updates
        ]
        # A head that is tied to a table has an entry, and no weight.
        tables = {f"{HEAD}/weight": array for module, array in found if is_embedding(module.name)}
        return tables | {f"{module.title}/weight": array for module, array in found}

    def _write_file(self, path: Path, names: Iterable[str]) -> None:
        if not path.exists():
            arrays = {name: self.weights[name] for name in names if name in self.weights}
            write_safetensors(path, arrays, self.merged)


def match_weights(
    layers: list[LayerLoRA], weights: Mapping[str, Array], tied: bool | None, problems: Problems
) -> dict[str, list[Update]]:
    """The updates of each weight of the base, which has the names of the source.

    LoRAs without one weight get a line in `problems`.
    """
    by_path: dict[str, set[str]] = {}
    for name in weights:
        path = weight_path(name)
        by_path.setdefault(path, set()).add(name)
        by_path.setdefault(re.sub(r"\W", "_", path), set()).add(name)  # as kohya has it
    # A head that reads the table, too, would change with it.
    may_have_head = tied is not False and not any(x.endswith(f"{HEAD}/weight") for x in by_path)
    tables = [layer for layer in layers if layer.pair.is_embedding and layer.is_tied]
    layer_of: dict[str, LayerLoRA] = {}
    updates: dict[str, list[Update]] = {}
    for layer in layers:
        with problems.of(layer.name):
            is_lookup = layer.pair.is_embedding and layer.pair.source.name == "PEFT"
            if is_lookup and may_have_head and not layer.is_tied:
                raise MisfitError(
                    "it changes lookups alone, and a head may read the table. Give a base with its "
                    "lm_head.weight; or, if no head reads the table, say tied=False or --untied"
                )
            matches = {name for path in layer.weights for name in by_path.get(path, ())}
            if not matches and any(_is_same_update(layer, table) for table in tables):
                continue  # a head that PEFT tied to the table, which is merged
            name = _only_weight(layer, matches, weights)
            if (first := layer_of.setdefault(name, layer)) is not layer:
                raise MisfitError(f"{first.name} updates {name}, too")
            shape = tuple(weights[name].shape)
            updates[name] = [layer.update_of_weight(x, name, shape) for x in layer.modules]
    return updates


def _only_weight(layer: LayerLoRA, matches: set[str], weights: Mapping[str, Array]) -> str:
    """The weight of a LoRA. **Raises:** `MisfitError` unless there is one, with wide numbers."""
    if len(matches) != 1:
        raise MisfitError(
            f"the base must have one array {' or '.join(dict.fromkeys(layer.weights))}, "
            f"and has {', '.join(sorted(matches)) or 'none'}. Give its weights by base= or "
            "--base. If names start with, say, lora_unet_, give `prefix`. If the base has "
            "names of another project, convert to PEFT first"
        )
    (name,) = matches
    if np.dtype(weights[name].dtype).name not in _WIDE:
        raise MisfitError(f"{name} has the dtype {weights[name].dtype}, not floating")
    return name


def _is_same_update(head: LayerLoRA, table: LayerLoRA) -> bool:
    """Whether a head's update is the transposed update of a table."""
    is_transposed = np.array_equal(head.B.T, table.A) and np.array_equal(head.A.T, table.B)
    return is_transposed and head.scale == table.scale
