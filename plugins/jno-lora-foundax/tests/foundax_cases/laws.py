"""The laws in NumPy and float64, written from the papers and not from our code."""

import math
from typing import Any

import numpy as np

METHODS = [
    *("LoRA", "rsLoRA", "LoRAFA", "DoRA", "PiSSA", "MiLoRA"),
    *("LoRAXS", "VeRA", "IA3", "LoKr", "OFT"),
]


def law(method: str, f: Any, W: np.ndarray, r: int, alpha: float) -> np.ndarray:
    """`W'` for the original matrix `W` `(out, in)` and the effective rank.

    **Arguments:**

    - `f`: has the adapter's arrays, of VeRA also the two that it draws. DoRA's may have `norm`, the
        row norms to take for constant; PiSSA's and MiLoRA's `residual`, what of `W` is frozen,
        where that is not to be found by a decomposition of `W`.
    """
    s = alpha / r
    match method:
        case "LoRA" | "LoRAFA":  # arXiv:2106.09685, 2308.03303
            return W + s * f.lora_B @ f.lora_A
        case "rsLoRA":  # arXiv:2312.03732
            return W + alpha / math.sqrt(r) * f.lora_B @ f.lora_A
        case "DoRA":  # arXiv:2402.09353
            V = W + s * f.lora_B @ f.lora_A
            norm = getattr(f, "norm", None)
            norm = np.linalg.norm(V, axis=1) if norm is None else norm
            return np.diag(f.magnitude / norm) @ V
        case "PiSSA" | "MiLoRA":  # arXiv:2404.02948, 2406.09044
            residual = getattr(f, "residual", None)
            if residual is None:
                residual = W - triplets(W, slice(0, r) if method == "PiSSA" else slice(-r, None))
            return residual + s * f.lora_B @ f.lora_A
        case "LoRAXS":  # arXiv:2405.17604
            return W + s * f.lora_B @ f.R @ f.lora_A
        case "VeRA":  # arXiv:2310.11454
            return W + s * np.diag(f.b) @ f.B @ np.diag(f.d) @ f.A
        case "IA3":  # arXiv:2205.05638
            return np.diag(f.scale) @ W
        case "LoKr":  # arXiv:2309.14859
            return W + s * np.kron(f.kron_A, f.kron_B)[: len(W), : W.shape[1]]
        case "OFT":  # arXiv:2306.07280
            pairs = zip(f.Q_blocks, np.split(W, range(r, len(W), r)), strict=True)
            return np.concatenate([rotation(Q, len(rows)) @ rows for Q, rows in pairs])
    raise ValueError(method)


def triplets(W: np.ndarray, chosen: slice) -> np.ndarray:
    """The part of `W` that the chosen singular triplets make up, largest first."""
    U, S, Vt = np.linalg.svd(W, full_matrices=False)
    return U[:, chosen] @ np.diag(S[chosen]) @ Vt[chosen]


def rotation(Q: np.ndarray, outputs: int) -> np.ndarray:
    """Cayley's `(I - Q~)(I + Q~)^-1`, of a last block only what has outputs."""
    n = min(len(Q), outputs)
    skew = (Q - Q.T)[:n, :n] / 2
    return (np.eye(n) - skew) @ np.linalg.inv(np.eye(n) + skew)


def per_mode(W: np.ndarray, A: np.ndarray, B: np.ndarray, scale: float) -> np.ndarray:
    """`W_k + s B_k A_k` of the spectral layers.

    **Arguments:**

    - `W`: complex (or real), `(*modes, out, in)`.
    - `A`, `B`: real, the first axis has the real and the imaginary part, or the real one only.
    """
    return W + scale * complex_of(B) @ complex_of(A)


def complex_of(parts: np.ndarray) -> np.ndarray:
    """Complex numbers from their parts on the first axis; real ones from one part."""
    return parts[0] if len(parts) == 1 else parts[0] + 1j * parts[1]
