"""PVeRA, as VeRA: the second half of `d` and `A` makes the variance, which only training uses."""

from ._shared import projections
from ._type import Converted, Module, Setting, Type


class PVERA(Type):
    """LoRA, `A = diag(d) A`, `B = diag(b) B`."""

    tensors = "pvera_lambda_[bd]"
    layers = None
    rank = Setting("r", 256)
    shared = r"base_model\.pvera_[AB]"
    settings = "pvera_dropout d_initial generator_seed projection_prng_key save_projection"
    only = (("sample_at_inference", False, "its outputs are drawn at random"),)

    def read(self, m: Module) -> Converted:
        b, d = m.take({"pvera_lambda_b": (m.layout.outputs,), "pvera_lambda_d": (2 * m.rank,)})
        A, B = projections(m, "pvera", 2 * m.rank)
        return m.low_rank((d[: m.rank, None] * A[: m.rank], b[:, None] * B))
