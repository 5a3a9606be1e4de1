"""Orthogonal wavelets: the filters of Daubechies, and one step of the inverse transform."""

import math

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float


def daubechies(moments: int) -> np.ndarray:
    """The low-pass filter with `2 moments` taps, shortest delay first, whose sum is sqrt(2).

    By spectral factorisation: half of the zeros are at -1, and half inside the unit circle
    (Daubechies, "Ten Lectures on Wavelets", section 6.1).
    """
    zeros = [-1.0 + 0j] * moments
    for y in np.roots([math.comb(moments - 1 + k, k) for k in range(moments)][::-1]):
        pair = np.roots([1, 4 * y - 2, 1])
        zeros.append(pair[np.argmin(np.abs(pair))])
    taps = np.real(np.poly(zeros))
    return taps * math.sqrt(2) / np.sum(taps)


def synthesised(
    c: Float[Array, "_ _"], low: Float[Array, " taps"], axis: int
) -> Float[Array, "_ _"]:
    """One level of the inverse transform along an axis, which becomes `taps - 2` shorter.

    `c` has the averages `a`, then the details `d`: `y_k = sum_i low[k - 2 i] a_i + high[k - 2 i]
    d_i`, for the `k` where all taps meet coefficients.
    """
    averages, details = jnp.split(c, 2, axis)
    signs = jnp.where(jnp.arange(low.size) % 2 == 0, 1, -1).astype(low.dtype)
    high = signs * low[::-1]
    taps = low.size // 2  # of every second output
    n = averages.shape[axis] - taps + 1

    def every_second(first: int) -> Array:
        terms = []
        for j in range(taps):
            start, tap = taps - 1 - j, first + 2 * j
            a, d = (lax.slice_in_dim(x, start, start + n, axis=axis) for x in (averages, details))
            terms.append(low[tap] * a + high[tap] * d)
        return sum(terms[1:], terms[0])

    # A transposition would take more time than the sums.
    pairs = jnp.stack([every_second(0), every_second(1)], axis + 1)
    return pairs.reshape(*c.shape[:axis], 2 * n, *c.shape[axis + 1 :])
