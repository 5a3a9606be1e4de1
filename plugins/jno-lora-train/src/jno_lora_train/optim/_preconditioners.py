"""Gradients preconditioned by the factors, `r x r`: Riemannian LoRA, and LoRA-FA's correction."""

from collections.abc import Container, Mapping
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
import jax.tree_util as jtu
import optax
from jaxtyping import Array, Inexact, PyTree

from jno.lora import LoRAWrapper, MatrixAdapter, SelectionError
from jno.lora.extending import (
    at_least_float32,
    bullets,
    expect_model,
    gauss_jordan,
    is_adapter,
    members_of,
    path_str,
    show_path,
)

from ._factors import ADVICE, KeyPath, Product, products


def scale_by_riemannian(damping: float = 1e-6) -> optax.GradientTransformation:
    r"""Precondition the gradients of factors by the Gram matrix of the other factor, `r x r`.

    `g_A <- (B^T B + delta I)^-1 g_A` and `g_B <- g_B (A A^T + delta I)^-1`. Put it in front of an
    optimiser: `optax.chain(scale_by_riemannian(), optax.adam(1e-3))` is the paper's scaled AdamW.
    It computes in at least float32 and keeps the dtypes of the gradients. Each layer of a stack has
    its own preconditioner. If only `A` or only `B` trains, its gradient stays unchanged.

    For complex factors, `^T` also conjugates; put `conjugate()` in front.

    As in the paper, the scale `s` of an update `s B A` is ignored. A step of plain gradient descent
    then moves the matrix by `s^2` times the projected gradient.

    **Arguments:** `damping`, `delta`. Where the Gram matrix `G` is so large that `delta` would be
    lost to rounding, `delta` is `max(8, sqrt(n)) eps trace(G)`, for factors of length `n`.

    **Raises:** `SelectionError` unless `damping` is positive; at `init`, if no product has two
    trained factors; at `update`, if it is called without `params`.

    Paper: Zhang and Pilanci, "Riemannian Preconditioned LoRA for Fine-Tuning Foundation Models",
    arXiv:2402.02347.
    """
    _check_damping(damping)

    def init(params: PyTree) -> optax.EmptyState:
        expect_model(params, "scale_by_riemannian")
        if next(products(params), None) is None:
            raise SelectionError(
                "scale_by_riemannian found no product `B A` whose two factors train. For "
                f"adapters with a frozen `A`, use lora_fa(model). {ADVICE}"
            )
        return optax.EmptyState()

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        if params is None:
            raise SelectionError(
                "scale_by_riemannian reads the factors: call optimiser.update(grads, state, params)"
            )
        to_A = {product.A.keys: product.B.array for product in products(params)}
        to_B = {product.B.keys: product.A.array for product in products(params)}

        def scale(keys: KeyPath, g: Array) -> Array:
            wide = at_least_float32(g)
            if keys in to_A:
                wide = _solve(to_A[keys].mT.conj(), wide, damping)
            elif keys in to_B:
                wide = _solve(to_B[keys].conj(), wide.mT, damping).mT
            return wide.astype(g.dtype)

        return jtu.tree_map_with_path(scale, updates), state

    return optax.GradientTransformation(init, update)


class PreconditionerState(NamedTuple):
    """The state of `lora_fa`: by the path of each `B`, `(A A^T + delta I)^-1 / s^2`, `(..., r, r)`.

    It is computed once, because `A` is frozen.
    """

    preconditioners: dict[str, Inexact[Array, "... r r"]]


def lora_fa(model: PyTree, damping: float = 1e-8) -> optax.GradientTransformation:
    """LoRA-FA's correction of the gradients of `B`, for adapters whose `A` is frozen.

    `g_B <- g_B (A A^T + delta I)^-1 / s^2`. Among all updates that a frozen `A` allows, this one
    moves the matrix closest to a step of full fine-tuning. Put it in front of an optimiser:
    `optax.chain(lora_fa(net.module), optax.adamw(1e-3))`. Other gradients stay as they are.

    **Arguments:**

    - `model`: the adapted model, which has the factors `A`; the optimiser does not get them. In a
        sum of adapters, the weight of a member is a factor of its `s`. A weight of 0 gives a step
        of 0. If the factors are complex, `^T` also conjugates; put `conjugate()` in front.
    - `damping`: `delta`, as in `scale_by_riemannian`.

    **Raises:** `SelectionError` unless `damping` is positive, or if `model` is a `Net` or a set; at
    `init`, if no adapter has an update `s B A` with `A` frozen and `B` among `params`, or if the
    weights of a sum train, because `s` would then change.

    Paper: Zhang et al., "LoRA-FA: Memory-efficient Low-rank Adaptation for Large Language Models
    Fine-tuning", arXiv:2308.03303.
    """
    expect_model(model, "lora_fa")
    _check_damping(damping)

    def init(params: PyTree) -> PreconditionerState:
        trained = {keys for keys, _ in jtu.tree_leaves_with_path(params)}
        updates = [x for x in products(model) if _scale_of(x.adapter) is not None]
        frozen = [x for x in updates if x.A.keys not in trained and x.B.keys in trained]
        if not frozen:
            paths = [path_str(x.A.keys) for x in updates if x.A.keys in trained]
            trains = f" These train:\n{bullets(map(show_path, paths))}\n" if paths else " "
            raise SelectionError(
                "lora_fa found no update `s B A` with `A` frozen and `B` among the arrays that "
                f'train.{trains}Adapt with net.lora(wrapper="lora-fa"), or freeze `A` by '
                'net.mask("lora_A$").freeze(), and give lora_fa the model that is partitioned, '
                "net.module."
            )
        weights = _weights_of_members(model, trained)
        corrections = {path_str(x.B.keys): _correction(x, damping, weights) for x in frozen}
        return PreconditionerState(corrections)

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        def correct(keys: KeyPath, g: Array) -> Array:
            inverse = state.preconditioners.get(path_str(keys))
            if inverse is None:
                return g
            return (g.astype(inverse.dtype) @ inverse).astype(g.dtype)

        return jtu.tree_map_with_path(correct, updates), state

    return optax.GradientTransformation(init, update)


def _scale_of(adapter: LoRAWrapper) -> float | None:
    """The scale `s` of an adapter whose update is `s B A`; `None` for other adapters."""
    if adapter.rank is None or adapter.alpha is None:
        return None
    return MatrixAdapter.of(type(adapter)).low_rank_scale(adapter.rank, adapter.alpha)


def _weights_of_members(model: PyTree, trained: Container[KeyPath]) -> dict[KeyPath, Array]:
    """The weight of each member of a sum of adapters, in each layer, by the member's key path.

    **Raises:** `SelectionError` if the weights train.
    """
    weights: dict[KeyPath, Array] = {}
    for keys, adapter in jtu.tree_leaves_with_path(model, is_leaf=is_adapter):
        members = members_of(type(adapter)) if is_adapter(adapter) else ()
        if not members:
            continue
        if (*keys, jtu.GetAttrKey("weights")) in trained:
            raise SelectionError(
                f"lora_fa divides by the scale of each update once, but the weights of the sum at "
                f"{show_path(path_str(keys))!r} train. Give them numbers: "
                'net.activate(..., weights={"name": 1.0}, train=[...])'
            )
        for index, member in enumerate(members):
            place = (*keys, jtu.GetAttrKey("trained"), jtu.DictKey(member.name))
            weights[place] = adapter.weights[..., index]
    return weights


def _correction(
    product: Product, damping: float, weights: Mapping[KeyPath, Array]
) -> Inexact[Array, "... r r"]:
    """`(A A^T + delta I)^-1 / s^2`, or 0 if `s` is 0, because such an update has no effect.

    `s` also contains two frozen factors for each layer: a `multiplier`, and the weight in a sum.
    """
    A, keys = at_least_float32(jnp.asarray(product.A.array)), product.A.keys
    identity = jnp.broadcast_to(jnp.eye(A.shape[-2], dtype=A.dtype), (*A.shape[:-1], A.shape[-2]))
    places = (keys[:length] for length in range(len(keys)))
    factors: list[Array | None] = [weights[place] for place in places if place in weights]
    factors.append(vars(product.adapter).get("multiplier"))
    scale = jnp.asarray(_scale_of(product.adapter), A.dtype)
    for factor in factors:
        if factor is not None:
            scale = scale * jnp.asarray(factor, A.dtype)
    inverse_square = jnp.where(scale == 0, 0, 1 / jnp.square(jnp.where(scale == 0, 1, scale)))
    of_each_layer = jnp.broadcast_to(inverse_square, A.shape[:-2])[..., None, None]
    return _solve(A, identity, damping) * of_each_layer


def _solve(
    factor: Inexact[Array, "... r n"], right: Inexact[Array, "... r m"], damping: float
) -> Inexact[Array, "... r m"]:
    """`(F F^T + delta I)^-1 R`, for each matrix of a stack. `^T` also conjugates."""

    @partial(jnp.vectorize, signature="(r,n),(r,m)->(r,m)")
    def solve(F: Array, R: Array) -> Array:
        G = jnp.matmul(F, F.T.conj(), precision="highest")
        # Less damping can be lost to the rounding of `G`: a quarter of it gave indefinite matrices.
        # JAX 0.8 sums sequentially on a CPU, with errors of half the root of the number of terms.
        rounding = max(8.0, F.shape[1] ** 0.5) * jnp.finfo(G.dtype).eps * jnp.trace(G).real
        identity = jnp.eye(len(G), dtype=G.dtype)
        damped = G + jnp.maximum(damping, rounding) * identity
        inverse = gauss_jordan(damped, identity, pivoting=False)
        return jnp.matmul(inverse, R, precision="highest")

    return solve(jnp.asarray(factor, right.dtype), right)


def _check_damping(damping: float) -> None:
    if not isinstance(damping, float | int) or not damping > 0:
        raise SelectionError(f"`damping` must be a positive number, but is {damping!r}.")
