"""OSF: the singular triplets of the weight are trained, except the largest. It is MiLoRA."""

import numpy as np

from ._starts import largest_triplets
from ._type import Converted, MisfitError, Module, Type


class OSF(Type):
    """MiLoRA."""

    tensors = r"osf_svd_params\.[USV]_low"
    layers = None
    settings = "effective_rank rank_pattern target_svd_config"

    def read(self, m: Module) -> Converted:
        names = [f"osf_svd_params.{letter}_low" for letter in "USV"]
        (outputs, inputs), (r,) = m.layout.matrix, m.shape_of(names[1], 1)
        U, S, V = m.take(dict(zip(names, ((outputs, r), (r,), (r, inputs)), strict=True)))
        frozen = min(outputs, inputs) - r
        if frozen < 1 or r < 1:
            raise MisfitError(f"it trains {r} of the {min(outputs, inputs)} triplets of its weight")
        Uh, Sh, Vh = largest_triplets(m, frozen)
        # The weight without the frozen triplets, as factors with the rows of the smaller side.
        rest_U, rest_S, rest_V = np.linalg.svd(m.W - (Uh * Sh[:frozen]) @ Vh, full_matrices=False)
        state = {
            "lora_A": S[:, None] * V,
            "lora_B": U,
            "initial_A": (rest_S[:r, None] * rest_V[:r]).astype(np.float32),
            "initial_B": rest_U[:, :r].astype(np.float32),
        }
        return Converted("milora", r, float(r), state)
