"""VeRA: `diag(b) B diag(d) A`, with the matrices that all layers share."""

import numpy as np

from ._shared import projections
from ._type import Adapter, Converted, Module, Setting, Type, Written


class VERA(Type):
    """VeRA with the shared matrices of the file (`vera-shared`)."""

    tensors = "vera_lambda_[bd]"
    methods = ("vera-shared",)
    rank = Setting("r", 256)
    shared = r"base_model\.vera_[AB]"
    settings = "vera_dropout d_initial projection_prng_key save_projection"
    bias = "vera_only"

    def read(self, m: Module) -> Converted:
        b, d = m.take({"vera_lambda_b": (m.layout.outputs,), "vera_lambda_d": (m.rank,)})
        projections(m, "vera", m.rank)  # checks them
        shared = {f"vera-{letter}": m.shared[f"base_model.vera_{letter}"] for letter in "AB"}
        return Converted("vera-shared", m.rank, 1.0, {"b": b, "d": d}, shared=shared)

    def write(self, adapter: Adapter) -> Written:
        (outputs, inputs), r = adapter.layout.matrix, adapter.rank
        b = np.asarray(adapter.alpha, adapter.state["b"].dtype) * adapter.state["b"]
        shared = {
            "base_model.vera_A": adapter.shared["A"][:r, :inputs],
            "base_model.vera_B": adapter.shared["B"][:outputs, :r],
        }
        tensors = {"vera_lambda_b": b, "vera_lambda_d": adapter.state["d"]}
        return Written(adapter, tensors, {"save_projection": True}, shared)
