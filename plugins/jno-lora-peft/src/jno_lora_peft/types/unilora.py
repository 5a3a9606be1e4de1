"""UniLoRA: factors whose entries are taken from one vector for all layers."""

from ._shared import shared_arrays
from ._type import Converted, Module, Setting, Type


class UNILORA(Type):
    """LoRA, its factors put together from the shared vector."""

    tensors = "unilora_(?:indices|scales)_[AB]"
    layers = None
    rank = Setting("r", 4)
    shared = r"base_model\.unilora_theta_d"
    settings = "theta_d_length proj_seed unilora_dropout init_theta_d_bound"
    only = (
        (
            "save_indices",
            True,
            "which entry of the shared vector stands where is not in the file, and only Torch "
            "draws the same again: save it in PEFT with save_indices=True",
        ),
    )

    def read(self, m: Module) -> Converted:
        (theta,) = shared_arrays(m, "unilora_theta_d")
        outputs, inputs = m.layout.matrix
        shapes = ((m.rank, inputs), (outputs, m.rank))
        names = [f"unilora_{kind}_{n}" for kind in ("indices", "scales") for n in "AB"]
        indices_A, indices_B, scales_A, scales_B = m.take(dict(zip(names, shapes * 2, strict=True)))
        A, B = theta[indices_A.astype(int)] * scales_A, theta[indices_B.astype(int)] * scales_B
        return m.low_rank((A, B))
