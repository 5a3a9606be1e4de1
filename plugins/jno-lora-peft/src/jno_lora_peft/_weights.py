"""Types without a method of their own here: `W' - W`, from the file and the layer's weight."""

import numpy as np

from ._module import Converted, Module
from ._updates import MisfitError


def glora(m: Module) -> Converted:
    """`W + W A + B` and `b + b D + E + W C`, where each of the five is made in one of four ways."""
    outputs, inputs = m.layout.matrix
    shapes = {"A": (outputs, inputs), "B": (outputs, inputs), "C": (inputs, 1)}
    shapes |= {"D": (outputs,), "E": (outputs,)}
    paths = {letter: _path(m, letter, shape) for letter, shape in shapes.items()}
    A, B, C, D, E = (paths[letter] for letter in "ABCDE")
    shift = m.b * D + E + (m.W @ C)[:, 0]
    return m.update(m.W * A + B, **({"shift": shift} if shift.any() else {}))


def _path(m: Module, letter: str, shape: tuple[int, ...]) -> np.ndarray:
    """One of GLoRA's five: a product of two factors, one vector, one number, or nothing."""
    own = {n.rpartition(".")[2]: x for n, x in m.parts.items() if n.startswith(f"glora_{letter}.")}
    try:
        found = own["Xd"] @ own["Xu"] if own.keys() == {"Xd", "Xu"} else own.get("X", 0.0)
        return np.broadcast_to(np.asarray(found, np.float64), shape)
    except ValueError as err:
        raise MisfitError(f"glora_{letter}: it does not make an array {shape}: {err}") from err


def frod(m: Module) -> Converted:
    """`U (diag(l) + S) V^T` in place of `W`, where `U` is `W V^-T` with columns of length 1."""
    key = _category(m.name)
    names = [f"base_model.frod_{what}.{key}" for what in ("V", "s_indices", "s_size")]
    if any(name not in m.shared for name in names):
        raise MisfitError(
            "the matrix that its layers share is not in the file: save it in PEFT with "
            "save_projection=True"
        )
    inputs = m.layout.inputs
    V, indices, size = (m.shared[name] for name in names)
    if V.shape != (inputs, inputs) or size.tolist() != [inputs, inputs]:
        raise MisfitError(f"the shared matrix is {V.shape}, the layer has {inputs} inputs")
    count = indices.shape[1] if indices.ndim == 2 else 0
    m.check({"frod_lambda_l": (inputs,), "frod_lambda_s_values": (count,)})
    V = V.astype(np.float64)
    U = np.linalg.solve(V, m.W.T).T
    lengths = np.linalg.norm(U, axis=0)
    U = np.where(lengths > 1e-12, U / np.maximum(lengths, 1e-12), 0).astype(np.float32)
    middle = np.diag(m.parts["frod_lambda_l"].astype(np.float64))
    np.add.at(middle, tuple(indices), m.parts["frod_lambda_s_values"])
    return m.update(U @ middle @ V.T - m.W)


def _category(module: str) -> str:
    """The layers that share a matrix have one key, of the last two parts of their names."""
    parts = module.split(".")
    if len(parts) == 1 or parts[-2].isdigit():
        return parts[-1]
    if parts[-3:] == ["attention", "output", "dense"]:
        return "attention_output"
    return f"{parts[-2]}_{parts[-1]}"
