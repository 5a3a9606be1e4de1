"""LoftQ and QPiSSA: LoRA starts from a weight's quantisation error."""

import functools
from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jno.lora import MatrixAdapter, SelectionError
from jno.lora.extending import (
    adapted_layers,
    bullets,
    expect_model,
    is_coded,
    map_adapters,
    over_stack,
    path_str,
    show_path,
)
from jno_lora_zoo import largest

from ._array import QuantizedArray, placed_like
from ._plan import as_pattern, is_template, layers_to_quantize
from ._quantize import quantize, with_codes
from ._schemes import Scheme, scheme_named

M = TypeVar("M")
Matrix = Float[Array, "out in"]


def loftq(
    model: M,
    scheme: str = "nf4",
    *,
    iterations: int = 5,
    start: str = "codes",
    svd: str = "exact",
    target: str | None = None,
    block: int = 64,
    double: bool = True,
) -> M:
    """`quantize(model, ...)`, with LoRA adapters that start from the quantisation errors.

    For a layer with the matrix `W`, it alternately computes the codes `Q` of `W - s B A`, and
    `s B A` as the `r` largest singular triplets of `W - Q`, so that the quantised model starts
    closer to the given model. LoRA, rsLoRA and LoRA-FA can start like this; all other layers are
    only quantised.

    Papers: Li et al., "LoftQ: LoRA-Fine-Tuning-Aware Quantization for Large Language Models",
    arXiv:2310.08659; QPiSSA in Meng et al., arXiv:2404.02948.

    **Arguments:**

    - `model`: a model with adapters, from `apply_lora(model, rank, key=key)`. Learned updates count
        as part of `W`.
    - `iterations`: how many times the codes are computed.
    - `start`: `"codes"`: start with the codes of `W`, end with triplets (LoftQ). `"pissa"`: start
        with the triplets of `W`, end with codes (QPiSSA).
    - `svd`: `"exact"`, `"randomized"` or `"auto"`, as for PiSSA. `"exact"` captures more of
        `W - Q`, whose singular values decrease slowly.
    - `scheme`, `target`, `block`, `double`: as for `quantize`.

    **Returns:** the model, with codes in all layers that `quantize` takes. Its adapters keep their
    classes, so that they are saved and loaded as before, onto the base that
    `save_quantized(unwrap_lora(model), path)` wrote.

    **Raises:** `SelectionError` for a wrong argument, if no adapter can start like this, for an
    adapter whose scale is 0, and as `quantize`.
    """
    expect_model(model, "loftq")
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1:
        raise SelectionError(f"`iterations` must be a positive integer, but is {iterations!r}.")
    if start not in ("codes", "pissa"):
        raise SelectionError(f'`start` must be "codes" or "pissa", but is {start!r}.')
    settings = {"scheme": scheme, "target": target, "block": block, "double": double}
    schedule = {"iterations": iterations, "start": start, "svd": svd}
    if is_template(model):
        return eqx.filter_eval_shape(loftq, model, **schedule, **settings)
    coding, pattern = scheme_named(scheme, block, double), as_pattern(target)
    reasons = {path_str(keys): reason for keys, _, reason in layers_to_quantize(model, pattern)}
    left_out: list[str] = []

    def started(path: str, adapter: M) -> M:
        base = f"{path}/base" if path else "base"
        reason = reasons.get(base, "it is not a layer that quantize takes") or _why_not(adapter)
        if reason is None:
            return _started(path, adapter, coding, **schedule)
        left_out.append(f"{show_path(path)} ({type(adapter).__name__}): {reason}")
        return adapter

    count = sum(1 for _ in adapted_layers(model))
    model = map_adapters(started, model)
    if len(left_out) == count:
        listed = bullets(left_out) if left_out else "  (no adapters: apply_lora comes first)"
        raise SelectionError(f"loftq finds no adapter that it could start:\n{listed}")
    remaining = (reason is None for *_, reason in layers_to_quantize(model, pattern))
    return quantize(model, **settings) if any(remaining) else model


def _why_not(adapter: PyTree) -> str | None:
    if MatrixAdapter.of(type(adapter)).low_rank_scale(adapter.rank, adapter.alpha) is None:
        return "its update is not a scale times B A"
    if not adapter.state().keys() <= {"lora_A", "lora_B", "bias_update"}:
        return "it has arrays beside its factors, such as a multiplier"
    return None


def _started(path: str, adapter: PyTree, scheme: Scheme, **schedule: int | str) -> PyTree:
    """The adapter around its quantised base, with factors that compensate for the error."""
    scale = MatrixAdapter.of(type(adapter)).low_rank_scale(adapter.rank, adapter.alpha)
    if scale == 0:
        raise SelectionError(
            f"The adapter at {show_path(path)!r} has the scale 0: give it another scale."
        )
    function = functools.partial(_alternated, scheme=scheme, scale=scale, **schedule)
    function = over_stack(function, adapter.stack_ndim(adapter.base))
    codes, A, B = eqx.filter_jit(function)(adapter)
    base = with_codes(path, adapter.base, codes.astype(adapter.base.weight.dtype))
    factors = placed_like(A, adapter.lora_A), placed_like(B, adapter.lora_B)
    return eqx.tree_at(lambda m: (m.base, m.lora_A, m.lora_B), adapter, (base, *factors))


def _alternated(
    adapter: PyTree, *, scheme: Scheme, scale: float, iterations: int, start: str, svd: str
) -> tuple[QuantizedArray, Array, Array]:
    """The codes of one layer, and the factors `A` and `B`."""
    dtype, r = adapter.lora_A.dtype, adapter.lora_A.shape[0]
    wide = _with_weight(adapter.base, jnp.asarray(adapter.base.weight).astype(jnp.float32))
    W = adapter.matrix(eqx.tree_at(lambda m: m.base, adapter, wide).merge())

    def codes_beside(A: Array, B: Array) -> QuantizedArray:
        remainder = W - scale * (B.astype(W.dtype) @ A.astype(W.dtype))
        return QuantizedArray.of(adapter.with_matrix(wide, remainder).weight, scheme)

    def errors_of(codes: QuantizedArray) -> Matrix:
        return W - adapter.matrix(_with_weight(wide, codes.decoded()))

    def factors_of(R: Matrix) -> tuple[Array, Array]:
        U, S, Vt = largest(R, r, svd, jax.random.key(0))
        root = jnp.sqrt(S / abs(scale))
        sign = 1.0 if scale > 0 else -1.0
        return (root[:, None] * Vt).astype(dtype), (sign * U * root[None]).astype(dtype)

    A, B = factors_of(W) if start == "pissa" else (adapter.lora_A, jnp.zeros_like(adapter.lora_B))
    codes = codes_beside(A, B)
    for _ in range(iterations - 1):
        A, B = factors_of(errors_of(codes))
        codes = codes_beside(A, B)
    if start == "codes":
        A, B = factors_of(errors_of(codes))
    return codes, A, B


def _with_weight(layer: M, weight: Array) -> M:
    return eqx.tree_at(lambda m: m.weight, layer, weight, is_leaf=is_coded)
