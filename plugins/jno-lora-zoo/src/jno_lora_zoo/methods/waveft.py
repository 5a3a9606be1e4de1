"""WaveFT: train a few coefficients of the update's wavelet transform."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from .._arrays import Matrix
from .._bibtex import cited
from .._positions import row_and_column, scattered
from .fourierft import Transformed

_DAUBECHIES = {f"db{moments}": moments for moments in range(1, 11)}


class WaveFT(Transformed):
    """WaveFT: trained coefficients of the update's discrete wavelet transform.

    Law: `W' = W + alpha IDWT2(scatter(coefficients))`, `coefficients = 0`, at positions drawn from
    the key and saved. `min(r(in + out), in out)` parameters train, or `n_frequency`. `alpha` is the
    paper's scale, not divided by the rank; PEFT's default is 25. `r = min(rank, in, out)` only sets
    how many coefficients there are, as many as LoRA has numbers.

    Paper: Bilican et al., "Exploring Sparsity for Parameter Efficient Fine Tuning Using Wavelets",
    arXiv:2505.12532. The transform has one level, as in PEFT. Its four quarters form a matrix that
    is `taps - 2` larger than `W` each way (1 more if that is odd); positions are drawn in its
    middle, as in PEFT.

    - `n_frequency`: how many coefficients train.
    - `wavelet`: `"db1"` (Haar) to `"db10"`, `"none"` (the coefficients are entries of the update),
        or the taps of an orthogonal low-pass filter whose sum is sqrt(2).

    **Raises:** `ValueError` for an unknown wavelet, an odd number of taps, and unless `n_frequency`
    is a whole number from 1 to `in out`.
    """

    variant = "waveft"
    about = cited(
        "2505.12532",
        family="transform",
        formula="min(r (in + out), in out)",
        cost="a wavelet transform of the size of the weight at every call: merge before decoding.",
    )

    # An array, so that it is saved with the adapter. Without taps there is no transform.
    low_pass: Float[Array, " taps"]

    def start(
        self,
        W: Matrix,
        r: int,
        key: PRNGKeyArray,
        dtype: DTypeLike,
        *,
        n_frequency: object = None,
        wavelet: str | Sequence[float] = "db1",
    ) -> dict[str, Array]:
        fields = super().start(W, r, key, dtype, n_frequency=n_frequency)
        return {**fields, "low_pass": jnp.asarray(_taps(wavelet), W.dtype)}

    def update(self, W: Matrix) -> Matrix:
        outputs, inputs = W.shape
        c = self.times_scale(self.coefficients.astype(W.dtype))
        if self.low_pass.size == 0:
            return scattered(c, self.positions, W.shape)
        more = self.low_pass.size - 2
        height, width = ((size + more + 1) // 2 for size in W.shape)
        rows, columns = row_and_column(self.positions, W.shape)
        rows, columns = rows + (2 * height - outputs) // 2, columns + (2 * width - inputs) // 2
        # The quarters on the right are details along the first axis, in PEFT's order.
        quarters = jnp.zeros((2, height, 2, width), W.dtype)
        quarters = quarters.at[columns // width, rows % height, rows // height, columns % width]
        low = self.low_pass.astype(W.dtype)
        U = synthesised(quarters.add(c).reshape(2 * height, 2 * width), low, axis=0)
        return synthesised(U, low, axis=1)[:outputs, :inputs]

    @classmethod
    def options_of(cls, state: Mapping[str, Array]) -> dict[str, object]:
        # The state contains the taps, so only their number matters.
        return {**super().options_of(state), "wavelet": (0.0,) * len(state["low_pass"])}


def _taps(wavelet: str | Sequence[float]) -> Any:
    """The low-pass filter. **Raises:** `ValueError` if it is unknown, or its length is odd."""
    if isinstance(wavelet, str):
        if wavelet == "none":
            return ()
        if wavelet in _DAUBECHIES:
            return daubechies(_DAUBECHIES[wavelet])
        raise ValueError(
            "`wavelet` must be 'db1' to 'db10', 'none', or the taps of a filter, but is "
            f"{wavelet!r}"
        )
    if len(wavelet) % 2:
        raise ValueError(f"`wavelet` must have an even number of taps, but has {len(wavelet)}")
    return wavelet


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
    taps = low.size // 2  # that reach every second output
    n = averages.shape[axis] - taps + 1

    def every_second(first: int) -> Array:
        terms = []
        for j in range(taps):
            start, tap = taps - 1 - j, first + 2 * j
            a, d = (lax.slice_in_dim(x, start, start + n, axis=axis) for x in (averages, details))
            terms.append(low[tap] * a + high[tap] * d)
        return sum(terms[1:], terms[0])

    # A transposition would take longer than the sums.
    pairs = jnp.stack([every_second(0), every_second(1)], axis + 1)
    return pairs.reshape(*c.shape[:axis], 2 * n, *c.shape[axis + 1 :])
