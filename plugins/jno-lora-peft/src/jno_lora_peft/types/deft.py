"""DEFT: a projection, and its replacement. The signs of orthonormal columns may differ in PEFT."""

import dataclasses

import numpy as np

from ._type import Adapter, Converted, MisfitError, Module, R, Type, Written


class DEFT(Type):
    """DEFT."""

    tensors = "deft_[PR]"
    rank = R
    settings = "alpha decomposition_method para init_scale deft_dropout"
    bias = "deft_only"

    def read(self, m: Module) -> Converted:
        r = min(m.rank, m.layout.outputs)
        para, method = bool(m.settings.get("para")), m.settings.get("decomposition_method", "relu")
        if method not in ("relu", "qr"):
            raise MisfitError(f"decomposition_method is {method!r}, and PEFT knows 'relu' and 'qr'")
        names = {"P": ("deft_P", (m.layout.outputs, r))}
        if not para:
            names["R"] = ("deft_R", (r, m.layout.inputs))
        adapter = dataclasses.replace(m, rank=r).as_method("deft", names)
        if not para:
            P, R = adapter.state["P"], adapter.state["R"]
            scale = m.settings["alpha"] / r if m.settings.get("alpha") else 1.0
            adapter = adapter.with_arrays(R=_signs(P, method) * R * np.float32(scale))
        if method == "qr":
            adapter = adapter.with_arrays(orthogonal=np.ones((), np.float32))
        return adapter

    def write(self, adapter: Adapter) -> Written:
        state, method = adapter.state, "qr" if "orthogonal" in adapter.state else "relu"
        tensors = {"deft_P": state["P"]}
        if "R" in state:
            tensors["deft_R"] = _signs(state["P"], method) * state["R"]
        settings = {"decomposition_method": method, "para": "R" not in state, "alpha": None}
        return adapter.written(tensors, settings)


def _signs(P: np.ndarray, method: str) -> np.ndarray:
    """The sign of each column of LAPACK's `Q`, where Gram-Schmidt keeps the column's direction."""
    if method != "qr":
        return np.ones((1, 1), P.dtype)
    return np.sign(np.diag(np.linalg.qr(P)[1]))[:, None].astype(P.dtype)
