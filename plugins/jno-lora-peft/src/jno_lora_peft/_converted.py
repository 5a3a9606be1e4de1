"""One PEFT adapter as an adapter here, exactly, or the reason why that cannot be."""

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from ._config import Config
from ._files import SHARED
from ._layouts import Layout
from ._updates import (
    UPDATES,
    Factors,
    MisfitError,
    Parts,
    alpha_for,
    check,
    factors,
    refuse_layer,
    widened,
)


@dataclasses.dataclass(frozen=True)
class Converted:
    """One adapter as an adapter here: its variant, and its arrays.

    - `bias`: changes of the layer's bias: a `"factor"` for it, a `"shift"` to add to it.
    """

    variant: str
    rank: int
    alpha: float
    state: Mapping[str, np.ndarray]
    bias: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


def convert(config: Config, module: str, parts: Parts, shared: Parts, layout: Layout) -> Converted:
    """The adapter of one module. **Raises:** `MisfitError` unless it has an exact equivalent."""
    for name, tensor in {**parts, **shared}.items():
        if not jnp.issubdtype(tensor.dtype, jnp.floating):
            raise MisfitError(f"{name}: expected floating numbers, got {tensor.dtype}")
    wide = {name: widened(tensor) for name, tensor in parts.items()}
    if config.type == "LORA":
        return _lora(config, module, wide, layout)
    if config.type == "IA3":
        return _ia3(config, module, wide, layout)
    if config.type == "VERA":
        product, scale = _vera(config.rank(module), wide, shared, layout), 1.0
    else:
        product = UPDATES[config.type](wide, config.rank(module), layout)
        scale = config.scale(module)
    return _low_rank("lora", product, scale, config.alpha(module), layout)


def _lora(config: Config, module: str, parts: Parts, layout: Layout) -> Converted:
    rank, scale, variant = config.rank(module), config.scale(module), config.variant
    if rank % layout.groups:
        raise MisfitError(f"the rank {rank} is not a multiple of the {layout.groups} groups")
    table = layout.tensors(variant, rank)
    bias = {"lora_B.bias": (layout.outputs,)} if config.values.get("lora_bias") else {}
    check(parts, dict(table.values()) | bias, ignored="lora_velora_embed")
    refuse_layer(layout, dora=variant == "dora")
    arrays = {field: parts[name] for field, (name, _) in table.items()}
    matrices = layout.to_matrices(arrays["lora_A"], arrays["lora_B"])
    if matrices is None:
        raise MisfitError(
            f"its update sees the inputs of all {layout.groups} groups, where the layer's kernel "
            "sees those of one, so that no kernel holds it"
        )
    found = _low_rank(variant, matrices, scale, config.alpha(module), layout)
    vectors = {name: x.reshape(-1) for name, x in arrays.items() if name not in found.state}
    shift = {"shift": scale * parts["lora_B.bias"]} if bias else {}
    return dataclasses.replace(found, state={**found.state, **vectors}, bias=shift)


def _ia3(config: Config, module: str, parts: Parts, layout: Layout) -> Converted:
    if config.scales_inputs(module):
        raise MisfitError(
            "it is one of the feedforward_modules: PEFT scales their inputs, and IA3 here scales "
            "outputs"
        )
    ((field, (name, shape)),) = layout.tensors("ia3", 1).items()
    check(parts, {name: shape})
    scale = parts[name].reshape(-1)
    # PEFT scales the output of the layer, so the bias too.
    return Converted("ia3", 1, 1.0, {field: scale}, {"factor": scale})


def _vera(rank: int, parts: Parts, shared: Parts, layout: Layout) -> Factors:
    check(parts, {"vera_lambda_b": (layout.outputs,), "vera_lambda_d": (rank,)})
    if set(SHARED) - shared.keys():
        raise MisfitError(
            "the matrices that all layers share are not in the file, and only Torch draws the same "
            "again from their seed: save it in PEFT with save_projection=True"
        )
    A, B = (widened(shared[name]) for name in SHARED)
    outputs, inputs = layout.matrix
    if A.ndim != 2 or B.ndim != 2 or (len(A), B.shape[1]) != (rank, rank):
        raise MisfitError(f"the shared matrices {A.shape} and {B.shape} do not have rank {rank}")
    if A.shape[1] < inputs or len(B) < outputs:
        raise MisfitError(
            f"the shared matrices {A.shape} and {B.shape} are too small for the layer"
        )
    d, b = parts["vera_lambda_d"], parts["vera_lambda_b"]
    return d[:, None] * A[:, :inputs], b[:, None] * B[:outputs]


def _low_rank(
    variant: str, product: Factors, scale: float, alpha: float, layout: Layout
) -> Converted:
    """`s B A` as an adapter of scale `s`, with the alpha of the file if that gives this scale."""
    A, B = product
    outputs, inputs = layout.matrix
    if A.shape[1:] != (inputs,) or B.shape != (outputs, len(A)):
        raise MisfitError(
            f"its update is ({len(B)}, {A.shape[-1]}) as a matrix, the layer's weight is "
            f"({outputs}, {inputs})"
        )
    if len(A) > min(outputs, inputs):
        # No adapter here has a larger rank than its layer's matrix.
        whole = B.astype(np.float64) @ A.astype(np.float64)
        A, B = factors(whole.astype(np.result_type(A, B)))
    elif len(A) == 0:  # AdaLoRA has taken all of it away
        A, B = np.zeros((1, inputs), A.dtype), np.zeros((outputs, 1), B.dtype)
    alpha = alpha_for(variant, len(A), scale, alpha)
    return Converted(variant, len(A), alpha, {"lora_A": A, "lora_B": B})
