"""FourierFT: train a few coefficients of the update's Fourier transform."""

from collections.abc import Mapping

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray, Shaped

from .._arrays import Matrix
from .._bibtex import cited
from .._positions import count_of, drawn_positions, row_and_column
from .._scaled import Additive


class Transformed(Additive):
    """`W' = W + alpha U`, where a transform of `U` has trained coefficients at some positions."""

    adapter_fields = ("coefficients",)
    _scales_by_alpha = True

    coefficients: Float[Array, " n"]
    positions: Shaped[Array, "n 4"]

    def start(
        self, W: Matrix, r: int, key: PRNGKeyArray, dtype: DTypeLike, *, n_frequency: object = None
    ) -> dict[str, Array]:
        n = count_of(W.shape, r, n_frequency, "n_frequency")
        return {"coefficients": jnp.zeros(n, dtype), "positions": drawn_positions(key, n, W.size)}

    @classmethod
    def options_of(cls, state: Mapping[str, Array]) -> dict[str, object]:
        return {**super().options_of(state), "n_frequency": len(state["coefficients"])}


class FourierFT(Transformed):
    """FourierFT: trained coefficients of the update's discrete Fourier transform.

    Law: `W' = W + alpha Re(IFFT2(scatter(coefficients)))`, `coefficients = 0`, at positions drawn
    from the key and saved. `min(r(in + out), in out)` real parameters train, or `n_frequency`.
    `alpha` is the paper's scale, not divided by the rank: the inverse transform divides by
    `in out`, so `alpha` should be large, such as 100 to 300. `r = min(rank, in, out)` only sets how
    many coefficients there are, as many as LoRA has numbers.

    - `n_frequency`: how many coefficients train.

    Paper: Gao et al., "Parameter-Efficient Fine-Tuning with Discrete Fourier Transform",
    arXiv:2405.03003. The paper shares one draw of positions among all layers, and can prefer
    frequencies; here each layer has its own draw, spread evenly. As in the paper, `Re` keeps the
    even part of the coefficients, so opposite frequencies add up.

    **Raises:** `ValueError` unless `n_frequency` is a whole number from 1 to `in out`.
    """

    variant = "fourierft"
    about = cited(
        "2405.03003",
        family="transform",
        formula="min(r (in + out), in out)",
        cost="an FFT of the size of the weight at every call: merge before decoding.",
    )

    def update(self, W: Matrix) -> Matrix:
        # The even part has a real inverse transform, and needs half of the frequencies.
        rows, columns = row_and_column(self.positions, W.shape)
        outputs, inputs = W.shape
        opposite = (outputs - rows) % outputs, (inputs - columns) % inputs
        c = self.times_scale(self.coefficients.astype(W.dtype)) / 2
        half = jnp.zeros((outputs, inputs // 2 + 1), W.dtype)
        even = half.at[rows, columns].add(c, mode="drop").at[opposite].add(c, mode="drop")
        return jnp.fft.irfft2(even, W.shape)
