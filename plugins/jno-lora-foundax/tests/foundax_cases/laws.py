"""The law of the spectral layers in NumPy and float64, written from the paper."""

import numpy as np


def per_mode(W: np.ndarray, A: np.ndarray, B: np.ndarray, scale: float) -> np.ndarray:
    """`W_k + s B_k A_k` of the spectral layers.

    **Arguments:**

    - `W`: complex (or real), `(*modes, out, in)`.
    - `A`, `B`: real, the first axis has the real and the imaginary part, or the real one only.
    """
    return W + scale * complex_of(B) @ complex_of(A)


def shared(W: np.ndarray, A: np.ndarray, B: np.ndarray, c: np.ndarray, scale: float) -> np.ndarray:
    """`W_k + s B diag(c_k) A`, with `A` `(parts, r, in)`, `B` `(parts, out, r)`, `c` `(..., r)`."""
    A, B, c = map(complex_of, (A, B, c))
    return W + scale * sum(
        c[..., j, None, None] * np.outer(B[:, j], A[j]) for j in range(A.shape[0])
    )


def gains(W: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """`diag(1 + g_k) W_k`, with `gain` `(parts, *modes, out)` as above."""
    return (1 + complex_of(gain))[..., None] * W


def complex_of(parts: np.ndarray) -> np.ndarray:
    """Complex numbers from their parts on the first axis; real ones from one part."""
    return parts[0] if len(parts) == 1 else parts[0] + 1j * parts[1]
