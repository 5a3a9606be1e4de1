"""One PEFT adapter as an adapter here, exactly, or the reason why that cannot be."""

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from ._config import Config
from ._keys import SHARED
from ._layouts import Layout
from ._updates import UPDATES, MisfitError, Parts, check, factors, refuse_layer, scale_of, widened


@dataclasses.dataclass(frozen=True)
class Held:
    """One adapter: the variant that holds it, and its arrays there.

    - `bias`: changes of the layer's bias: a `"factor"` for it, a `"shift"` to add to it.
    """

    variant: str
    rank: int
    alpha: float
    state: Mapping[str, np.ndarray]
    bias: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


def held(config: Config, module: str, parts: Parts, shared: Parts, layout: Layout) -> Held:
    """The adapter of one module.

    **Arguments:**

    - `parts`: its tensors, by their names in the module.
    - `shared`: those that all modules share.
    - `layout`: of the layer that it belongs to here.

    **Raises:** `MisfitError` if it has no exact equivalent here, or does not fit the layer.
    """
    for name, tensor in {**parts, **shared}.items():
        if not jnp.issubdtype(tensor.dtype, jnp.floating):
            raise MisfitError(f"{name}: expected floating numbers, got {tensor.dtype}")
    wide = {name: widened(tensor) for name, tensor in parts.items()}
    if config.type == "LORA":
        return _lora(config, module, wide, layout)
    if config.type == "IA3":
        return _ia3(config, module, wide, layout)
    if config.type == "VERA":
        A, B = _vera(config, module, wide, shared, layout)
        return _low_rank("lora", A, B, 1.0, layout)
    A, B = UPDATES[config.type](wide, config.rank(module), layout)
    return _low_rank("lora", A, B, config.scale(module), layout)


def _lora(config: Config, module: str, parts: Parts, layout: Layout) -> Held:
    rank, alpha, scale = config.rank(module), config.alpha(module), config.scale(module)
    dora, has_bias = config.flag("use_dora"), config.flag("lora_bias")
    down, up = layout.factors
    if rank % layout.groups:
        raise MisfitError(f"the rank {rank} is not a multiple of the {layout.groups} groups")
    shapes = {down: layout.down_shape(rank), up: layout.up_shape(rank)}
    if dora:
        shapes["lora_magnitude_vector"] = layout.magnitude_shape
    if has_bias:
        shapes["lora_B.bias"] = (layout.outputs,)
    check(parts, shapes, ignored="lora_velora_embed")
    refuse_layer(layout, dora=dora)
    matrices = layout.to_matrices(parts[down], parts[up])
    if matrices is None:
        raise MisfitError(
            f"its update sees the inputs of all {layout.groups} groups, where the layer's kernel "
            "sees those of one, so that no kernel holds it"
        )
    variant = "dora" if dora else "rslora" if config.flag("use_rslora") else "lora"
    rescaled = dora and config.flag("use_rslora")
    found = _low_rank(variant, *matrices, scale, layout, None if rescaled else (rank, alpha))
    if dora:
        magnitude = parts["lora_magnitude_vector"].reshape(-1)
        found = dataclasses.replace(found, state={**found.state, "magnitude": magnitude})
    if has_bias:
        found = dataclasses.replace(found, bias={"shift": scale * parts["lora_B.bias"]})
    return found


def _ia3(config: Config, module: str, parts: Parts, layout: Layout) -> Held:
    if config.scales_inputs(module):
        raise MisfitError(
            "it is one of the feedforward_modules: PEFT scales their inputs, and IA3 here scales "
            "outputs"
        )
    check(parts, {"ia3_l": layout.scale_shape})
    scale = parts["ia3_l"].reshape(-1)
    # PEFT scales the output of the layer, so the bias too.
    return Held("ia3", 1, 1.0, {"scale": scale}, {"factor": scale})


def _vera(
    config: Config, module: str, parts: Parts, shared: Parts, layout: Layout
) -> tuple[np.ndarray, np.ndarray]:
    rank = config.rank(module)
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
    variant: str,
    A: np.ndarray,
    B: np.ndarray,
    scale: float,
    layout: Layout,
    given: tuple[int, float] | None = None,
) -> Held:
    """`s B A` as an adapter whose scale is `s`.

    - `given`: a rank and the alpha that gives this scale with it, kept as the file has them.
    """
    outputs, inputs = layout.matrix
    if A.shape[1:] != (inputs,) or B.shape != (outputs, len(A)):
        raise MisfitError(
            f"its update is ({len(B)}, {A.shape[-1]}) as a matrix, the layer's weight is "
            f"({outputs}, {inputs})"
        )
    if len(A) > min(outputs, inputs):
        # No adapter here has a larger rank than its layer's matrix.
        product = B.astype(np.float64) @ A.astype(np.float64)
        A, B = factors(product.astype(np.result_type(A, B)))
    elif len(A) == 0:  # AdaLoRA has taken all of it away
        A, B = np.zeros((1, inputs), A.dtype), np.zeros((outputs, 1), B.dtype)
    rank = len(A)
    alpha = scale / scale_of(variant, rank, 1.0)
    if given is not None and given[0] == rank:
        alpha = float(given[1])
    return Held(variant, rank, alpha, {"lora_A": A, "lora_B": B})
