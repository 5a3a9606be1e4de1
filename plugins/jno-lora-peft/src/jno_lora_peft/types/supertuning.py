"""Super-Tuning: trained values at the largest entries of the weight, maybe with a LoRA."""

import numpy as np

from ..model.layouts import Shape
from ._positions import from_digits, to_digits
from ._type import Adapter, Converted, MisfitError, Module, Modules, Type, Written


class SUPERTUNING(Type):
    """Super-Tuning; LoRA if it has a LoRA beside it."""

    tensors = r"supertuning_(?:values|indices|lora_[AB]\.weight)"
    settings = "r lora_alpha lora_dropout sparsity select_top save_precomputed_indices"

    def read(self, m: Module) -> Converted:
        outputs, inputs = m.layout.matrix
        (count,) = m.shape_of("supertuning_values", 1)
        flat = m.tensors.get("supertuning_indices")
        shapes: dict[str, Shape] = {"supertuning_values": (count,)}
        if flat is None:
            flat = _largest_entries(m, count)
        else:
            shapes["supertuning_indices"] = (count,)
        if r := m.settings.get("r"):
            shapes["supertuning_lora_A.weight"] = (r, inputs)
            shapes["supertuning_lora_B.weight"] = (outputs, r)
        tensors = m.take(shapes)
        values, positions = tensors[0], to_digits(m, flat.astype(np.int64))
        if not r:
            return Converted("supertuning", 1, 1.0, {"values": values, "positions": positions})
        U = np.zeros(outputs * inputs)
        np.add.at(U, flat, values)
        A, B = tensors[-2:]
        scale = float(m.settings.get("lora_alpha") or 0) / r
        return m.update((U.reshape(outputs, inputs) + scale * (B @ A)).astype(A.dtype))

    def write(self, adapter: Adapter) -> Written:
        tensors = {
            "supertuning_values": adapter.state["values"],
            "supertuning_indices": from_digits(adapter.state["positions"]).astype(np.int32),
        }
        return adapter.written(tensors, {"save_precomputed_indices": True}, rank=1)

    def common(self, modules: Modules) -> dict[str, float]:
        """A sparsity with which PEFT counts as many entries in each layer as these have values."""
        sizes = [
            (written.tensors["supertuning_values"].size, np.prod(written.adapter.layout.matrix))
            for written in modules.values()
        ]
        least, most = max(n / size for n, size in sizes), min((n + 1) / size for n, size in sizes)
        middle = 1 - (least + most) / 2
        if any(int(size * (1 - middle)) != n for n, size in sizes):
            raise MisfitError("no `sparsity` for all layers gives as many entries as these have")
        return {"sparsity": float(middle)}


def _largest_entries(m: Module, count: int) -> np.ndarray:
    """The positions of the largest entries of the weight (or smallest), in PEFT's order."""
    sizes = np.abs(m.W.astype(np.float32)).reshape(-1)
    sort_keys = sizes if m.settings.get("select_top", True) is False else -sizes
    positions = np.argsort(sort_keys, kind="stable")[: count + 1]
    if len(np.unique(sort_keys[positions])) != len(positions):
        raise MisfitError(
            "equal entries of the weight leave their order open: save it in PEFT with "
            "save_precomputed_indices=True"
        )
    return positions[:count]
