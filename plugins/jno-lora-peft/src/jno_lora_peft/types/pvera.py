"""PVeRA, as VeRA: the second half of `d` and `A` makes the variance, which only training uses."""

from ._shared import projections
from ._type import Converted, Module, Setting, Type


def _read(m: Module) -> Converted:
    m.check({"pvera_lambda_b": (m.layout.outputs,), "pvera_lambda_d": (2 * m.rank,)})
    A, B = projections(m, "pvera", 2 * m.rank)
    d, b = m.tensors["pvera_lambda_d"][: m.rank], m.tensors["pvera_lambda_b"]
    return m.low_rank((d[:, None] * A[: m.rank], b[:, None] * B))


PVERA = Type(
    "PVERA",
    held="LoRA, `A = diag(d) A`, `B = diag(b) B`",
    tensors="pvera_lambda_[bd]",
    reader=_read,
    layers=None,
    rank=Setting("r", 256),
    shared=r"base_model\.pvera_[AB]",
    settings="pvera_dropout d_initial projection_prng_key save_projection",
    only={"sample_at_inference": (False, "its outputs are drawn at random")},
)
