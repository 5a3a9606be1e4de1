"""FRoD: `U (diag(l) + S) V^T` in place of `W`, where `U` is `W V^-T` with columns of length 1."""

import numpy as np

from ._shared import shared_arrays
from ._type import Converted, MisfitError, Module, Type


class FROD(Type):
    """LoRA of the layer's rank."""

    tensors = "frod_lambda_(?:l|s_values)"
    layers = None
    shared = r"base_model\.frod_(?:V|s_indices|s_size)\..*"
    settings = (
        "frod_dropout sparse_rate regularization_alpha progressbar projection_prng_key "
        "runtime_offload_base_weight save_projection"
    )

    def read(self, m: Module) -> Converted:
        category = _category(m.name)
        names = [f"frod_{array}.{category}" for array in ("V", "s_indices", "s_size")]
        V, indices, size = shared_arrays(m, *names)
        inputs = m.layout.inputs
        if V.shape != (inputs, inputs) or size.tolist() != [inputs, inputs]:
            raise MisfitError(f"the shared matrix is {V.shape}, the layer has {inputs} inputs")
        count = indices.shape[1] if indices.ndim == 2 else 0
        diagonal, sparse = m.take({"frod_lambda_l": (inputs,), "frod_lambda_s_values": (count,)})
        V = V.astype(np.float64)
        U = np.linalg.solve(V, m.W.T).T
        lengths = np.linalg.norm(U, axis=0)
        U = np.where(lengths > 1e-12, U / np.maximum(lengths, 1e-12), 0).astype(np.float32)
        middle = np.diag(diagonal.astype(np.float64))
        np.add.at(middle, tuple(indices), sparse)
        return m.update((U @ middle @ V.T - m.W).astype(np.float32))


def _category(module: str) -> str:
    """The layers that share a matrix have one key, of the last two components of their names."""
    names = module.split(".")
    if len(names) == 1 or names[-2].isdigit():
        return names[-1]
    if names[-3:] == ["attention", "output", "dense"]:
        return "attention_output"
    return f"{names[-2]}_{names[-1]}"
