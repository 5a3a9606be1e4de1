"""Methods of the zoo on the projections of an attention layer: LoRA and IA3."""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, PRNGKeyArray

from jno_lora_zoo import IA3Out, LoRA, cited, per_matrix

from .layer import FIELDS, AttentionLayer


class LoRAAttention(per_matrix(LoRA), AttentionLayer):
    """LoRA on some of the four projections of `eqx.nn.MultiheadAttention`.

    Law: `W_p' = W_p + (alpha / r_p) B_p A_p` for each chosen projection `p`, with
    `A_p ~ N(0, 1/in_p)` and `B_p = 0`. `r_p` is the rank that the projection allows,
    `sum_p r_p (in_p + out_p)` parameters train.

    **Arguments:**

    - `key`: each projection gets its own key, so adding one does not change how the rest start.
    - `projections`: letters out of `"qkvo"` (query, key, value, output); by default `"qv"`, as in
        the paper: `net.lora(wrapper="lora-attention", options={"projections": "qkvo"})`.
    - `bias`, `multiplier`, `adapter_dtype`: as in `LoRALinear`.

    **Raises:** `ValueError` unless `projections` consists of distinct letters out of `"qkvo"`.

    Paper: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685. No
    dropout on the input of the update.
    """

    variant = "lora-attention"
    about = cited("2106.09685", family="low rank", formula="r (in + out) per projection")
    # So that `extract_lora` gives LoRA of the linear layers inside, whatever is installed.
    with_products = None  # pyright: ignore[reportAssignmentType]

    def __init__(
        self,
        base: eqx.nn.MultiheadAttention,
        rank: int,
        alpha: float,
        *,
        key: PRNGKeyArray,
        projections: str = "qv",
        bias: str | None = None,
        multiplier: ArrayLike | None = None,
        adapter_dtype: DTypeLike | None = None,
    ):
        letters = set(projections) & set(FIELDS)
        if not projections or len(letters) < len(projections):
            raise ValueError(
                '`projections` must be distinct letters out of "qkvo" (query, key, value, output), '
                f'such as "qv", but is {projections!r}'
            )
        options = {"bias": bias, "multiplier": multiplier, "adapter_dtype": adapter_dtype}
        super().__init__(base, rank, alpha, key=key, names=projections, **options)

    @property
    def projections(self) -> str:
        """The letters of the adapted projections."""
        return "".join(self.adapters())

    @classmethod
    def options_of(cls, state: Mapping[str, Array]) -> dict[str, Any]:
        letters = {path.partition("/")[2] for path in state}
        chosen = "".join(letter for letter in FIELDS if letter in letters)
        return {**super().options_of(state), "projections": chosen}


class IA3Attention(per_matrix(IA3Out), AttentionLayer):
    """IA³: one trained factor for each channel of the keys and of the values.

    Law: `K' = l_k * (W_k x + b_k)` and `V' = l_v * (W_v x + b_v)`, where `l_k` and `l_v` start as
    1. As in the paper, the *activations* are scaled, and therefore the bias too (the zoo's
    `IA3Linear` scales the weight alone); `process_heads` gets the scaled heads. `merge` scales the
    rows of the weights, and the biases. `heads (qk_size + vo_size)` parameters train. `rank`,
    `alpha` and `key` are ignored. `adapter_dtype` is by default the base's, float32 at least.

    Paper: Liu et al., "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than
    In-Context Learning", arXiv:2205.05638. The paper's third vector scales the inner activations of
    the feed-forward block: adapt that layer with `IA3Linear`.
    """

    variant = "ia3-attention"
    about = cited("2205.05638", family="scale", formula="heads (qk + vo)")

    def __init__(
        self,
        base: eqx.nn.MultiheadAttention,
        rank: int,
        *,
        key: PRNGKeyArray,
        adapter_dtype: DTypeLike | None = None,
    ):
        super().__init__(base, rank, None, key=key, names="kv", adapter_dtype=adapter_dtype)
