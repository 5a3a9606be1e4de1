"""HRA: Householder reflections."""

import dataclasses

import numpy as np

from ._type import Adapter, Converted, MisfitError, Module, R, Type, Written


class HRA(Type):
    """HRA."""

    tensors = "hra_u"
    rank = R
    settings = "apply_GS"
    bias = "hra_only"

    def read(self, m: Module) -> Converted:
        """An odd number of reflections gets one more, by zeros, which reflect nothing."""
        orthogonal = m.settings.get("apply_GS")
        (U,) = m.take({"hra_u": (m.layout.matrix[1], m.rank)})
        if m.rank % 2:
            if orthogonal:
                raise MisfitError(f"its rank {m.rank} is odd, and apply_GS is set")
            U = np.pad(U, ((0, 0), (0, 1)))
        even = dataclasses.replace(m, rank=U.shape[1], tensors={"hra_u": U})
        adapter = even.as_method("hra", {"U": ("hra_u", U.shape)})
        return adapter.with_arrays(gram_schmidt=np.ones((), U.dtype)) if orthogonal else adapter

    def write(self, adapter: Adapter) -> Written:
        U = adapter.state["U"]
        U = U[:, U.any(axis=0)]
        tensors, settings = {"hra_u": U}, {"apply_GS": "gram_schmidt" in adapter.state}
        return adapter.written(tensors, settings, rank=U.shape[1])
