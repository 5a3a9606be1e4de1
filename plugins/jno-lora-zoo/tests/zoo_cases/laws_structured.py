"""Laws of structured updates, in NumPy and float64."""

import math

import numpy as np

from .laws import as_asked, law, of_lora


@law("LoHa", parameters=lambda r, out, inputs: 2 * r * (inputs + out))
def _loha(f, W, r, alpha):
    new = W.copy()
    for o, i in np.ndindex(W.shape):
        new[o, i] += alpha / r * (f.B1[o] @ f.A1[:, i]) * (f.B2[o] @ f.A2[:, i])
    return new


@law("HiRA", parameters=of_lora)
def _hira(f, W, r, alpha):
    new = W.copy()
    for o, i in np.ndindex(W.shape):
        new[o, i] *= 1 + alpha / r * (f.lora_B[o] @ f.lora_A[:, i])
    return new


@law(
    "MiSS",
    parameters=lambda r, out, inputs: r * out,
    rank=lambda rank, out, inputs: min(rank, inputs),
)
def _miss(f, W, r, alpha):
    new = W.copy()
    for o, i in np.ndindex(W.shape):
        new[o, i] += f.D[i % r, o]
    return new


def _blocks(r, *sizes):
    """GraLoRA's default number of blocks in a row: the smallest divisor of the rank above 1.

    It is 1 if the last block would have no entry.
    """
    divisors = (n for n in range(2, r + 1) if r % n == 0)
    return next((n for n in divisors if all(math.ceil(s / n) * (n - 1) < s for s in sizes)), 1)


def _gralora_count(r, out, inputs):
    k = _blocks(r, out, inputs)
    return k * r * (math.ceil(inputs / k) + math.ceil(out / k))


@law("GraLoRA", parameters=_gralora_count, rank=as_asked)
def _gralora(f, W, r, alpha):
    k, q, _ = f.A.shape
    p = f.B.shape[2]
    U = np.zeros((k * p, k * q))
    for j, n in np.ndindex(k, k):
        right = f.A[n][:, j * r // k : (j + 1) * r // k]
        left = f.B[j][n * r // k : (n + 1) * r // k]
        U[j * p : (j + 1) * p, n * q : (n + 1) * q] = left.T @ right.T
    return W + alpha / r * U[: len(W), : W.shape[1]]


@law("C3A", parameters=lambda r, out, inputs: math.ceil(out / r) * math.ceil(inputs / r) * r)
def _c3a(f, W, r, alpha):
    new = W.copy()
    for o, i in np.ndindex(W.shape):
        new[o, i] += f.kernel[o // r, i // r, (i % r - o % r) % r] / W.shape[1]
    return new


@law(
    "RandLoRA",
    parameters=lambda r, out, inputs: math.ceil(min(out, inputs) / r) * (r + min(out, inputs)),
    rank=as_asked,
)
def _randlora(f, W, r, alpha):
    n = f.lambdas.shape[1]
    U = np.zeros((max(W.shape), min(W.shape)))
    for j in range(n):
        U += f.B[:, j::n] @ np.diag(f.lambdas[:, j]) @ f.A @ np.diag(f.gammas[j])
    return W + alpha / r * (U if W.shape[0] >= W.shape[1] else U.T)
