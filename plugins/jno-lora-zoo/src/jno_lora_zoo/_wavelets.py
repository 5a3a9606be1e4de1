"""Orthogonal wavelets: the filters of Daubechies, and one step of the inverse transform."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def daubechies(moments: int) -> np.ndarray:
    """The low-pass filter with `2 moments` taps, shortest delay first, whose sum is sqrt(2).

    By spectral factorisation: half of the zeros are at -1, the others inside the unit circle
    (Daubechies, "Ten Lectures on Wavelets", section 6.1).
    """
    zeros = [-1.0 + 0j] * moments
    for y in np.roots([math.comb(moments - 1 + k, k) for k in range(moments)][::-1]):
        pair = np.roots([1, 4 * y - 2, 1])
        zeros.append(pair[np.argmin(np.abs(pair))])
    taps = np.real(np.poly(zeros))
    return taps * math.sqrt(2) / np.sum(taps)


def synthesised(c: Float[Array, "p m"], low: Float[Array, " taps"]) -> Float[Array, "n m"]:
    """One level of the inverse transform along the first axis: `n = p - taps + 2`.

    `c` has the averages above the details. `y_k = sum_i low[k - 2 i] a_i + high[k - 2 i] d_i`,
    where all taps meet coefficients.
    """
    averages, details = jnp.split(c, 2)
    signs = jnp.where(jnp.arange(low.size) % 2 == 0, 1, -1).astype(low.dtype)
    high = signs * low[::-1]
    n = len(averages) - low.size // 2 + 1
    pairs = [
        low[2 * j : 2 * j + 2][None, :, None] * averages[first : first + n, None]
        + high[2 * j : 2 * j + 2][None, :, None] * details[first : first + n, None]
        for j, first in enumerate(reversed(range(low.size // 2)))
    ]
    return sum(pairs[1:], pairs[0]).reshape(2 * n, -1)
