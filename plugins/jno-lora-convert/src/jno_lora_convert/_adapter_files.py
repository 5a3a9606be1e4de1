"""Write LoRA without its base: for PEFT, as one file of safetensors, or for Orbax."""

import collections
import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jno.lora import PeftFormatError
from jno.lora.extending import tracked
from jno_lora_peft.errors import MisfitError, Problems
from jno_lora_peft.files import write
from jno_lora_peft.names import PREFIX, peft_name
from jno_lora_peft.saving import with_pattern
from jno_lora_peft.types.lora import LORA

from ._arrays import Array
from ._orbax import save_orbax
from ._pairs import find_pairs, weight_path
from ._reading import Options, read_loras
from ._safetensors import write_safetensors
from ._states import open_state
from ._updates import LayerLoRA, Update, expect_close


@dataclasses.dataclass(frozen=True)
class AdapterFiles:
    """An adapter to write in the format `to`.

    - `updates`: of modules in Torch.
    - `dropout`: PEFT's `lora_dropout`, which only its format keeps.
    """

    to: str
    updates: list[Update]
    dropout: float

    def write(self, out: Path) -> None:
        """Write the files. **Raises:** `PeftFormatError` if the format has no such adapter."""
        if self.to == "peft":
            _write_peft(out, self.updates, self.dropout)
        elif self.to == "safetensors":
            _write_safetensors(out, self.updates)
        else:
            _write_orbax(out, self.updates)

    def largest_difference(self, out: Path) -> float:
        """The largest difference between the updates of the source and of the written factors.

        **Raises:** `PeftFormatError` if it is more than rounding.
        """
        state, problems = open_state(out), Problems()
        pairs = find_pairs(state.tree, "", problems).pairs
        layers = read_loras(pairs, state, Options(), problems)
        problems.refuse("The result cannot be read", "Nothing was kept.")
        written = {module.name: x.update(module) for x in layers for module in x.modules}
        largest = 0.0
        for update in tracked(self.updates, "Verifying"):
            name = update.module.name
            before, after = (_matrix(x) for x in (update, written[name]))
            largest = max(largest, expect_close(name, after, before, before))
        return largest


def match_modules(
    layers: list[LayerLoRA], base: Mapping[str, Array], problems: Problems
) -> list[Update]:
    """The updates of Torch's weights. Each module must have a name and one LoRA.

    - `base`: arrays by `weight_path`, whose shapes tell the law of a LoRA that has several.

    Others get a line in `problems`.
    """
    updates: list[Update] = []
    for layer in layers:
        with problems.of(layer.name):
            for module in layer.modules:
                is_kohya = layer.pair.source.name == "kohya"
                if is_kohya and "_" in module.name and not module.is_renamed:
                    raise MisfitError("kohya has underscores for dots: `rename` needs a rule")
                name = f"{peft_name(module.name, None)}.weight"
                shape = getattr(base.get(weight_path(name)), "shape", None)
                updates.append(layer.update_in_torch(module, name, shape))
    counts = collections.Counter(module.name for layer in layers for module in layer.modules)
    problems += [f"{name}: {n} LoRAs are of this module" for name, n in counts.items() if n > 1]
    return updates


def _write_peft(out: Path, updates: list[Update], dropout: float) -> None:
    flags = {update.module.is_transposed for update in updates} - {None}
    if len(flags) > 1:
        raise PeftFormatError("PEFT has one fan_in_fan_out for all linear layers.")
    ranks = {update.module.name: update.rank for update in updates}
    settings = lora_settings(ranks, _alphas(updates), is_transposed=True in flags)
    settings |= {"bias": "none", "target_modules": sorted(ranks), "lora_dropout": dropout}
    tensors = _torch_tensors(updates)
    write(out, settings, {f"{PREFIX}{name}": tensor for name, tensor in tensors.items()})


def lora_settings(
    ranks: Mapping[str, int], alphas: Mapping[str, float], *, is_transposed: bool
) -> dict[str, object]:
    """PEFT's settings of plain LoRA with these numbers of modules."""
    numbers = with_pattern(LORA.rank, ranks) | with_pattern(LORA.alpha, alphas)
    settings = {"peft_type": "LORA", "inference_mode": True, "fan_in_fan_out": is_transposed}
    return {**settings, **numbers}


def _write_safetensors(out: Path, updates: list[Update]) -> None:
    tensors = _torch_tensors(updates)
    tensors |= {f"{name}.alpha": np.asarray(alpha) for name, alpha in _alphas(updates).items()}
    write_safetensors(out, tensors, tensors.__getitem__)


def _write_orbax(out: Path, updates: list[Update]) -> None:
    """Write Qwix's names, with one alpha for all layers."""
    alphas = _alphas(updates)
    alpha = collections.Counter(alphas.values()).most_common(1)[0][0]
    arrays: dict[str, np.ndarray] = {}
    for update in updates:
        name = update.module.name
        A, B = update.law.torch_factors(update.A, update.B)
        if alphas[name] != alpha:
            B = B * np.float32(alphas[name] / alpha)
        weight = "embedding" if update.module.is_embedding else "kernel"
        start = f"{name.replace('.', '/')}/{weight}_lora"
        arrays[f"{start}_a"] = np.moveaxis(A, (0, 1), (-1, -2))
        arrays[f"{start}_b"] = B.reshape(len(B), -1).T
    save_orbax(out, arrays, alpha)


def _alphas(updates: list[Update]) -> dict[str, float]:
    """The alpha of each module, whose scale is `alpha / rank`."""
    return {update.module.name: update.rank * update.scale for update in updates}


def _torch_tensors(updates: list[Update]) -> dict[str, np.ndarray]:
    """The factors, with PEFT's names but its prefix."""
    tensors: dict[str, np.ndarray] = {}
    for update in updates:
        infix, end = ("embedding_", "") if update.module.is_embedding else ("", ".weight")
        A, B = update.law.torch_factors(update.A, update.B)
        start = f"{update.module.name}.lora_{infix}"
        tensors |= {f"{start}A{end}": A, f"{start}B{end}": B}
    return tensors


def _matrix(update: Update) -> np.ndarray:
    """Torch's weight, flat, without differences that are only the order of the sum."""
    return update.dense(update.law.in_torch, np.float64).astype(np.float32).ravel()
