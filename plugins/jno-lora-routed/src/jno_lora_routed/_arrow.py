"""Arrow: routing between existing adapters, without training."""

import os
from collections.abc import Iterable, Mapping
from typing import TypeVar

import numpy as np
from jaxtyping import Float

from jno.lora import AdapterSet, SelectionError, swap_adapters
from jno_lora_zoo import cited

from ._experts import Source, experts_of, set_of_experts
from .adapters import MoELoRA
from .routers import Prototypes

M = TypeVar("M")


class ArrowLoRA(MoELoRA):
    """The adapter that `arrow` puts around a layer: experts, weighted by prototypes.

    Law: `y = W x + sum_i w_i(x) B_i A_i x`, where `w(x)` is the softmax of `|p_i x| / temperature`
    over its `top_k` largest entries. `p_i` is the first right singular vector of `B_i A_i`.

    Paper: Ostapenko et al., "Towards Modular LLMs by Building and Reusing a Library of LoRAs",
    arXiv:2405.11157.
    """

    adapter_fields = ("lora_A", "lora_B")
    variant = "arrow"
    about = cited("2405.11157", family="routed", formula="n (r (in + out) + in)")
    router_class = Prototypes


def arrow(
    model: M,
    sets: Mapping[str, Source] | Iterable[Source],
    *,
    top_k: int = 3,
    temperature: float = 1.0,
    general: Iterable[str | os.PathLike[str] | AdapterSet] = (),
) -> M:
    """`model`, with layers that route each token between the adapters of several sets.

    This needs no training. An adapter's prototype in a layer is the first right singular vector of
    its `B A`, the input that the adapter changes most (zero if the adapter changes nothing).

    **Arguments:**

    - `model`: a model; its adapters, if any, are dropped.
    - `sets`: sets or files of plain LoRA of the same layers (`bank.adapters(name)`).
    - `top_k`: how many adapters a token uses; no more than there are sets.
    - `temperature`: of the softmax.
    - `general`: sets of general knowledge. The mean of their factors is subtracted from the factors
        of each set (GenKnowSub) before the prototypes are computed.

    **Returns:** the model with `ArrowLoRA` adapters. Load its file with
    `load_adapters(..., wrappers=ArrowLoRA)`.

    **Raises:** `SelectionError` if the sets do not fit each other or the model, or for a
    temperature that is not positive. `CheckpointError` as `read_adapters`.

    Papers: Ostapenko et al., arXiv:2405.11157; for `general`, Bagherifard et al., "GenKnowSub:
    Improving Modularity and Reusability of LLMs through General Knowledge Subtraction",
    arXiv:2505.10939.
    """
    if not temperature > 0:
        raise SelectionError(f"`temperature` must be positive, but is {temperature!r}")
    if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1:
        raise SelectionError(f"`top_k` must be an int from 1, but is {top_k!r}")

    def settings(A: np.ndarray, B: np.ndarray) -> dict[str, np.ndarray]:
        *stack, count, _, _ = A.shape
        return {
            "weight": prototypes(A, B),
            "temperature": np.full(stack, temperature, A.dtype),
            "k": np.full(stack, min(top_k, count), np.int32),
        }

    adapters = set_of_experts(experts_of(sets, general), ArrowLoRA, settings)
    return swap_adapters(model, adapters)


def prototypes(
    A: Float[np.ndarray, "*slots r in"], B: Float[np.ndarray, "*slots out r"]
) -> Float[np.ndarray, "*slots in"]:
    """The first right singular vector of each `B A`, from matrices with `r` columns.

    The vector is zero if `B A` is zero and so has no direction; no token prefers such an expert.
    """
    Q, R = np.linalg.qr(np.swapaxes(A, -1, -2))
    _, sizes, vectors = np.linalg.svd(B @ np.swapaxes(R, -1, -2), full_matrices=False)
    first = np.where(sizes[..., :1] > 0, vectors[..., 0, :], 0)
    return (Q @ first[..., None])[..., 0]
