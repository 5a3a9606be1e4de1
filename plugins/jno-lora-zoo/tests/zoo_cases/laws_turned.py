"""Laws of low rank, of singular directions and of rotations, in NumPy and float64."""

import math

import numpy as np

from .laws import as_asked, law, of_lora


def _even(n: int) -> int:
    return n + n % 2


def _butterfly_blocks(r: int, inputs: int) -> int:
    """Blocks of all factors: of two, or of one if a block has no halves or holds all inputs."""
    return math.ceil(inputs / r) if r % 2 or r == inputs else 4 * math.ceil(inputs / (2 * r))


def _within_inputs(rank: int, out: int, inputs: int) -> int:
    return min(rank, inputs)


def _skew(packed, r):
    """The antisymmetric matrix of the entries above its diagonal, row by row."""
    Q, entries = np.zeros((r, r)), iter(packed)
    for i in range(r):
        for j in range(i + 1, r):
            Q[i, j] = next(entries)
            Q[j, i] = -Q[i, j]
    return Q


def _cayley(Q):
    return (np.eye(len(Q)) - Q) @ np.linalg.inv(np.eye(len(Q)) + Q)


def truncated(Q, terms):
    """PEFT's series with that many terms: all but the first and the last twice."""
    last = 1 if terms == 2 else max(terms - 1, 3)
    R = np.eye(len(Q))
    for k in range(1, last + 1):
        R = R + (1 if k == last and terms > 2 else 2) * np.linalg.matrix_power(-Q, k)
    return R


@law(
    "OFTIn",
    parameters=lambda r, out, inputs: math.ceil(inputs / r) * r * (r - 1) // 2,
    rank=_within_inputs,
)
def _oft_in(f, W, r, alpha):
    inputs = W.shape[1]
    terms = len(f.series) if "series" in vars(f) and f.series.ndim else None
    R = np.zeros((inputs, inputs))
    for k in range(math.ceil(inputs / r)):
        n = min(r, inputs - k * r)  # the last block may be smaller
        Q = _skew(f.Q_packed[min(k, len(f.Q_packed) - 1)], r)[:n, :n]
        R[k * r : k * r + n, k * r : k * r + n] = truncated(Q, terms) if terms else _cayley(Q)
    return W @ R


@law(
    "HRA",
    parameters=lambda r, out, inputs: r * inputs,
    rank=lambda rank, out, inputs: _even(rank),
)
def _hra(f, W, r, alpha):
    for u in f.U.T:
        W = W @ (np.eye(len(u)) - 2 * np.outer(u, u) / (u @ u))
    return W


@law(
    "BOFT",
    parameters=lambda r, out, inputs: _butterfly_blocks(r, inputs) * r * r + out,
    rank=_within_inputs,
)
def _boft(f, W, r, alpha):
    inputs, size = W.shape[1], f.Q_blocks.shape[1] * r
    padded = np.zeros((len(W), size))
    padded[:, :inputs] = W
    for i, blocks in enumerate(f.Q_blocks):
        F = np.eye(size)
        for k, Q in enumerate(blocks):
            where = [place for place in _inputs_of(i, k, r) if place < inputs]
            kept = [n for n, place in enumerate(_inputs_of(i, k, r)) if place < inputs]
            skew = ((Q - Q.T) / 2)[np.ix_(kept, kept)]
            F[np.ix_(where, where)] = _cayley(skew)
        padded = padded @ F
    return f.s[:, None] * padded[:, :inputs]


def _inputs_of(i, k, r):
    """The inputs that block `k` of the butterfly's factor `i` rotates: two halves `2^i` apart."""
    if i == 0:
        return list(range(k * r, (k + 1) * r))
    half = r // 2
    first = k // 2**i * 2 ** (i + 1) + k % 2**i  # in halves
    return [h * half + n for h in (first, first + 2**i) for n in range(half)]


def _road_matrix(f, out):
    """`R` of pairs half a group apart; outputs beyond `out` do not exist."""
    per_pair, groups, half = f.theta.shape
    R = np.zeros((2 * groups * half, 2 * groups * half))
    for g in range(groups):
        for n in range(half):
            i, j = 2 * g * half + n, 2 * g * half + half + n
            # c_1, c_2, s_1, s_2
            theta, scale = (
                [array[k % per_pair, g, n] for k in range(4)] for array in (f.theta, f.scale)
            )
            R[i, i], R[j, j] = (scale[k] * np.cos(theta[k]) for k in (0, 1))
            R[i, j], R[j, i] = -scale[2] * np.sin(theta[2]), scale[3] * np.sin(theta[3])
    return R[:out, :out]


@law(
    "RoAd",
    parameters=lambda r, out, inputs: _even(out),
    rank=as_asked,
    bias=lambda f, b: _road_matrix(f, len(b)) @ b,
)
def _road(f, W, r, alpha):
    return _road_matrix(f, len(W)) @ W


@law("OLoRA", parameters=of_lora)
def _olora(f, W, r, alpha):
    Q, R = np.linalg.qr(W)
    residual = vars(f).get("residual", W - alpha / r * Q[:, :r] @ R[:r])
    return residual + alpha / r * f.lora_B @ f.lora_A


@law("PSOFT", parameters=lambda r, out, inputs: r * (r - 1) // 2 + 2 * r)
def _psoft(f, W, r, alpha):
    R = np.diag(f.b) @ _cayley(_skew(f.Q_packed, r)) @ np.diag(f.a)
    return W + f.lora_B @ (R - np.eye(r)) @ f.lora_A


@law("DEFT", parameters=of_lora, rank=lambda rank, out, inputs: min(rank, out))
def _deft(f, W, r, alpha):
    return (np.eye(len(W)) - f.P @ np.maximum(f.P, 0).T) @ W + f.P @ f.R


@law("IA3In", parameters=lambda r, out, inputs: inputs, rank=as_asked)
def _ia3_in(f, W, r, alpha):
    return W * f.scale[None, :]
