"""Updates and kernels as products of factors."""

import numpy as np

Factors = tuple[np.ndarray, np.ndarray]


def factors(kernel: np.ndarray) -> Factors:
    """Factors `A` and `B` of a matrix, or of a kernel as a matrix, that may have any rank."""
    matrix = kernel.reshape(len(kernel), -1)
    outputs, inputs = matrix.shape
    eye = np.eye(min(outputs, inputs), dtype=matrix.dtype)
    return (matrix, eye) if outputs <= inputs else (eye, matrix)


def tucker_kernel(core: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A kernel from its core and the factors of its outputs and inputs (a Tucker decomposition)."""
    return np.einsum("ijkl,jr,ip->prkl", core, b, a)
