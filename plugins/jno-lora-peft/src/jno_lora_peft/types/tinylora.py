"""TinyLoRA: a trained vector around matrices of the file. Their seed says which vector it is."""

import numpy as np

from ._positions import normal
from ._type import Converted, MisfitError, Module, Setting, Type

_VECTOR = "base_model.tinylora_v."


class TINYLORA(Type):
    """TinyLoRA, each layer with a vector of its own."""

    tensors = "tinylora_[ABP]"
    rank = Setting("r", 2)
    shared = r"base_model\.tinylora_v\..*"
    settings = "u weight_tying projection_seed save_projection init_v_bound tinylora_dropout"

    def read(self, m: Module) -> Converted:
        P, u = m.tensors.get("tinylora_P"), m.settings.get("u", 64)
        outputs, inputs = m.layout.matrix
        r = min(m.rank, outputs, inputs)
        if P is None:
            raise MisfitError("tinylora_P: missing: save it in PEFT with save_projection=True")
        shapes = {"tinylora_A": (r, inputs), "tinylora_B": (outputs, r), "tinylora_P": (u, r, r)}
        A, B, P = m.take(shapes)
        v = m.shared.get(f"{_VECTOR}{_number_of_vector(m, P, r)}")
        if v is None or v.shape != (u,):
            raise MisfitError("its trained vector is not in the file")
        return Converted("tinylora", r, 1.0, {"lora_A": A, "lora_B": B, "P": P, "v": v})


def _number_of_vector(m: Module, P: np.ndarray, r: int) -> int:
    """The number of the vector of this module. PEFT counts layers, and seeds by their numbers."""
    vectors = sum(name.startswith(_VECTOR) for name in m.shared)
    if vectors == 1:
        return 0
    seed = m.settings.get("projection_seed", 42)
    start, numbers = P.reshape(-1)[:16] * np.sqrt(r), range(vectors)
    if P.size >= 32:
        numbers = [n for n in numbers if np.allclose(normal(P.size, seed + n), start, atol=1e-4)]
    if m.settings.get("weight_tying") or len(numbers) != 1:
        raise MisfitError("which of the trained vectors is its own is not in the file")
    return numbers[0]
