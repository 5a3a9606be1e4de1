"""VB-LoRA: the factors of all layers are composed from the vectors of one bank."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray, Shaped

from jno.lora import LowRankForm, Shared

from .._arrays import Matrix
from .._bibtex import cited
from .._options import whole_number
from .._scaled import Scaled

_BOUND = 0.02  # of the vectors of a new bank


class VBLoRA(Scaled):
    """VB-LoRA: each piece of the factors is a mean of a few vectors from a bank for all layers.

    Law: `W' = W + alpha B A`. The rows of `A` and the columns of `B` are cut into pieces of
    `vector_length`, the last piece cut short. A piece is `softmax(top_k(logits)) bank`: the mean of
    the vectors with the `top_k` largest logits. Each piece has its own logits, for all `vectors` of
    the bank. With `n` vectors of length `l`, `n r (ceil(in/l) + ceil(out/l))`
    parameters train in a layer, and `n l` once for all layers. The rank is not clamped.

    - `vectors`: how many vectors the bank has.
    - `vector_length`: their length. One that divides all sizes wastes nothing, and is what PEFT can
        read.
    - `top_k`: how many vectors make a piece.
    - `initial`: `"zero"`, or `"random"` for the paper's start.

    By default the start is exact: the bank holds vectors and their negatives, uniform within 0.02,
    and the logits of `B`, normal with deviation 0.1, are equal for both vectors of a pair, so that
    `B = 0` (to rounding for `top_k` above 2). Later calls of `net.lora` use the trained bank, for
    which this does not hold. `initial="random"` is the paper's start: `B` is as random as `A`, and
    `W'` a little off `W`.

    Paper: Li et al., "VB-LoRA: Extreme Parameter Efficient Fine-Tuning with Vector Banks",
    arXiv:2405.15179. The paper has no scale, which is the default `alpha = 1`. Its files contain
    only the chosen logits; files here contain all logits, so that training can resume. Call
    `jno.lora.resolve(model)` in the loss.

    **Raises:** `ValueError` unless `vectors`, `vector_length` and `top_k` are whole numbers from 1
    on, `top_k` is at most `vectors` and `initial` is `"zero"` or `"random"`; and if `vectors` or
    `top_k` is odd with `initial="zero"`.
    """

    adapter_fields = ("logits_A", "logits_B", "bank")
    variant = "vb-lora"
    about = cited("2405.15179", family="low rank", formula="n r (in + out) / l, and n l once")
    _rank_limits = ()
    _scales_by_alpha = True

    logits_A: Float[Array, "r pieces n"]
    logits_B: Float[Array, "pieces r n"]
    bank: Shared
    # Zeros. In a saved state, the shape records `top_k` and the length of the vectors.
    sizes: Shaped[Array, "k l"]

    def start(
        self,
        W: Matrix,
        r: int,
        key: PRNGKeyArray,
        dtype: DTypeLike,
        *,
        vectors: Any = 256,
        vector_length: Any = 256,
        top_k: Any = 2,
        initial: str = "zero",
    ) -> dict[str, Array | Shared]:
        _check(vectors, vector_length, top_k, initial)
        into, out = (-(-size // vector_length) for size in reversed(W.shape))
        for_A, for_B = jax.random.split(key)
        exact = initial == "zero"
        make_bank = functools.partial(uniform, dtype=dtype, in_pairs=exact)
        logits_B = 0.1 * jax.random.normal(for_B, (out, r, vectors), dtype)
        if exact:
            logits_B = jnp.repeat(logits_B[..., ::2], 2, axis=-1)
        return {
            "logits_A": 0.1 * jax.random.normal(for_A, (r, into, vectors), dtype),
            "logits_B": logits_B,
            "bank": Shared("vb-lora-bank", (vectors, vector_length), make_bank),
            "sizes": jnp.zeros((top_k, vector_length), jnp.uint8),
        }

    @classmethod
    def options_of(cls, state: Mapping[str, Array]) -> dict[str, object]:
        top_k, length = state["sizes"].shape
        sizes = {"vectors": state["logits_A"].shape[-1], "vector_length": length, "top_k": top_k}
        return {**super().options_of(state), **sizes, "initial": "random"}

    def factors(self, W: Array) -> tuple[Float[Array, "r in"], Float[Array, "out r"]]:
        """`A` and `B`, in the dtype of `W`."""
        outputs, inputs = W.shape
        A = self._pieces(self.logits_A, W.dtype).reshape(self.rank, -1)[:, :inputs]
        B = jnp.swapaxes(self._pieces(self.logits_B, W.dtype), 1, 2)
        return A, B.reshape(-1, self.rank)[:outputs]

    def _pieces(self, logits: Float[Array, "x y n"], dtype: DTypeLike) -> Float[Array, "x y l"]:
        top_k, length = self.sizes.shape
        largest, chosen = lax.top_k(logits.astype(dtype), top_k)
        vectors = self.bank.array.astype(dtype)[chosen, :length]
        return jnp.einsum("xyk,xykl->xyl", jax.nn.softmax(largest), vectors)

    def law(self, W: Matrix) -> Matrix:
        A, B = self.factors(W)
        return W + self.times_scale(B) @ A

    def low_rank_form(self) -> LowRankForm:
        A, B = self.factors(self.matrix(self.base))
        return LowRankForm(A, self.times_scale(B))

    def forward(self, x: ArrayLike) -> Array:
        A, B = self.factors(self.matrix(self.base))
        return self.low_rank(x, A, self.multiplied(B), between=lambda h: self.scaling * h)


def uniform(
    key: PRNGKeyArray, shape: tuple[int, ...], *, dtype: DTypeLike, in_pairs: bool
) -> Array:
    """A bank of vectors; `in_pairs`: each second vector is the negative of the first."""
    bank = jax.random.uniform(key, shape, dtype, -_BOUND, _BOUND)
    return bank.at[1::2].set(-bank[: shape[0] // 2 * 2 : 2]) if in_pairs else bank


def _check(vectors: Any, vector_length: Any, top_k: Any, initial: Any) -> None:
    whole_number(vectors, "vectors")
    whole_number(vector_length, "vector_length")
    whole_number(top_k, "top_k")
    if top_k > vectors:
        raise ValueError(f"`top_k` is {top_k}, but the bank has only {vectors} vectors")
    if initial not in ("zero", "random"):
        raise ValueError(f'`initial` must be "zero" or "random", but is {initial!r}')
    if initial == "zero" and (vectors % 2 or top_k % 2):
        raise ValueError(
            f"`vectors` is {vectors} and `top_k` is {top_k}. A start that changes nothing takes "
            'vectors in pairs: give even numbers, or `initial="random"`'
        )
