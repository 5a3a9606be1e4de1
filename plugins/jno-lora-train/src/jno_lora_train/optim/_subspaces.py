"""Directions that the factors of adapters must avoid: CLoRA's penalty, OSF's projection."""

import math
import numbers
from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import optax
from jaxtyping import Array, DTypeLike, Float, Inexact, PRNGKeyArray, PyTree

from jno.lora import LoRAWrapper, MatrixAdapter, SelectionError, resolve
from jno.lora.extending import (
    at_least_float32,
    bullets,
    expect_model,
    over_stack,
    overrides,
    path_str,
    run,
    show_array,
    show_path,
    stable_hash,
    widest,
)

from ._factors import ADVICE, KeyPath, Product, factors, products

T = TypeVar("T")


class Subspaces(eqx.Module):
    """Directions that `A` and `B` must avoid, for each product `B A` in a model.

        kept = Subspaces.of_weights(net.module, 0.5)
        net.update(kept.project(net.partition()[0]))
        optimiser = optax.chain(optax.adam(1e-3), stay_orthogonal(kept))

    If `A V = 0` and `U^T B = 0`, the update `s B A` neither reads the inputs `V` nor changes the
    outputs along `U`: `W' V = W V` and `U^T W' = U^T W`. Here, `^T` also conjugates. `Subspaces`
    are a pytree.

    - `inputs`, `outputs`: orthonormal bases `V` and `U`, by the paths of each `A` and each `B`.
    """

    inputs: dict[str, Inexact[Array, "... in k"]]
    outputs: dict[str, Inexact[Array, "... out k"]]

    @classmethod
    def of_weights(cls, model: PyTree, size: float = 0.5) -> "Subspaces":
        """The `size` largest singular directions of each weight, to preserve the model's behaviour.

        With `project` at the start and `stay_orthogonal`, the largest singular triplets of each
        weight stay triplets of the adapted weight. MiLoRA starts outside of them; with the full
        remaining rank, it trains all of the remaining part of the weight, which is OSF.

        **Arguments:**

        - `model`: the adapted model. The weights are the weights before adapting.
        - `size`: how many directions, or the fraction of the directions of each matrix (rounded
            down; a matrix of one row or column then has none).

        **Raises:** `SelectionError` unless `size` is a whole number of 1 or more, or between 0 and
        1; if `model` has no products; or if an adapter's matrix is unknown or `size` leaves it no
        direction, or if its update is not `s B A` (DoRA) or starts in these directions (PiSSA,
        LoRA-Null). The message lists all such adapters.

        Papers: Nayak et al., "Sculpting Subspaces: Constrained Full Fine-Tuning in LLMs for
        Continual Learning", arXiv:2504.07097. The paper trains both factors and the values of the
        remaining triplets, and projects gradients; it derives `size` from how much a layer changes
        its inputs. PEFT's OSF keeps half of the directions, as in the example.
        """
        expect_model(model, "Subspaces.of_weights")
        # The same adapters, with the arrays that they share.
        pairs = zip(factors(model), factors(resolve(model)), strict=True)
        whole = {id(adapter): resolved for (adapter, _), (resolved, _) in pairs}
        inputs, outputs, problems = dict[str, Array](), dict[str, Array](), list[str]()
        for product, k in _sized(model, size):
            adapter, name = whole[id(product.adapter)], type(product.adapter).__name__
            W = _matrix_of(product, adapter)
            if W is None:
                problems.append(f"{_shown(product)}: the matrix of a {name} is not known here")
                continue
            U, V = (side[..., :k] for side in run(_decomposed, W))
            inputs[path_str(product.A.keys)], outputs[path_str(product.B.keys)] = V, U
            if not _stays_away(product, adapter, V, U):
                problems.append(
                    f"{_shown(product)}: a {name} changes the directions that are to stay, because "
                    "its update is not s B A, or starts in them"
                )
        if problems:
            raise SelectionError(
                f"These weights cannot keep their directions:\n{bullets(problems)}\nTake LoRA or "
                "MiLoRA, adapt other layers, by `target=`, or take Subspaces.random."
            )
        return cls(inputs, outputs)

    @classmethod
    def random(cls, model: PyTree, size: float, *, key: PRNGKeyArray) -> "Subspaces":
        """Random orthonormal directions, for the penalty of CLoRA.

        **Arguments:** `model`, `size`: as for `of_weights`. `key`: one random key.

        **Raises:** as `of_weights` for `model` and `size`.

        Paper: Lu et al., "Controlled Low-Rank Adaptation with Subspace Regularization for Continued
        Training on Large Language Models", arXiv:2410.16801.
        """
        expect_model(model, "Subspaces.random")

        def basis(keys: KeyPath, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
            factor_key = jax.random.fold_in(key, stable_hash(path_str(keys)))
            return jnp.linalg.qr(jax.random.normal(factor_key, shape, dtype))[0]

        inputs, outputs = dict[str, Array](), dict[str, Array]()
        for product, k in _sized(model, size):
            A, B = (at_least_float32(jnp.asarray(side.array)) for side in (product.A, product.B))
            stack = A.shape[:-2]
            shapes = (*stack, A.shape[-1], k), (*stack, B.shape[-2], k)
            inputs[path_str(product.A.keys)] = basis(product.A.keys, shapes[0], A.dtype)
            outputs[path_str(product.B.keys)] = basis(product.B.keys, shapes[1], B.dtype)
        return cls(inputs, outputs)

    def penalty(self, model: PyTree) -> Float[Array, ""]:
        """CLoRA's penalty: half of `||A V||^2 + ||U^T B||^2`, summed over all products.

            loss(model, batch) + subspaces.penalty(model)

        **Arguments:** `model`: the whole model, `eqx.combine(trainable, frozen)`.

        **Returns:** a scalar of at least float32.

        **Raises:** `SelectionError` if `model` lacks the factors, or if their shapes differ.
        """
        expect_model(model, "Subspaces.penalty")
        pairs = ((x, V) if is_input else (_mH(V), x) for _, x, V, is_input in self._matched(model))
        parts = [jnp.sum(((left @ right) * (left @ right).conj()).real) for left, right in pairs]
        dtype = widest(part.dtype for part in parts)
        return sum((part.astype(dtype) for part in parts), jnp.zeros((), dtype)) / 2

    def project(self, tree: T) -> T:
        """`tree` with each `A` replaced by `A - A V V^T`, and each `B` by `B - U U^T B`.

        **Arguments:** `tree`: a model, its trained part, its gradients or its updates. Adapters
            whose update is zero at first (LoRA, not PiSSA) still change nothing afterwards.

        **Raises:** `SelectionError` if `tree` lacks the factors, if their shapes differ, or if only
        one of a product's two factors is in `tree`.
        """
        sides = [is_input for *_, is_input in self._matched(tree)]
        if sum(sides) * 2 != len(sides):
            raise SelectionError(
                f"The tree has {sum(sides)} factors `A` and {len(sides) - sum(sides)} factors `B`. "
                "Factors that do not train have to be projected as well. Project the whole model, "
                "before it becomes a Net: Net(subspaces.project(apply_lora(...)))."
            )
        return self._projected(tree)

    def _projected(self, tree: T) -> T:
        projected = {
            keys: (x - (x @ V) @ _mH(V)) if is_input else (x - V @ (_mH(V) @ x))
            for keys, x, V, is_input in self._matched(tree)
        }

        def replaced(keys: KeyPath, leaf: PyTree) -> PyTree:
            return projected[keys].astype(leaf.dtype) if keys in projected else leaf

        return jtu.tree_map_with_path(replaced, tree)

    def _matched(self, tree: PyTree) -> list[tuple[KeyPath, Array, Array, bool]]:
        """Each factor in `tree`, in at least float32, with its basis and whether it is an `A`."""
        matched: list[tuple[KeyPath, Array, Array, bool]] = []
        for keys, leaf in jtu.tree_leaves_with_path(tree):
            path = path_str(keys)
            is_input = path in self.inputs
            basis = self.inputs.get(path, self.outputs.get(path))
            if basis is None:
                continue
            if not eqx.is_array(leaf) or leaf.shape[-1 if is_input else -2] != basis.shape[-2]:
                came = show_array(leaf) if eqx.is_array(leaf) else type(leaf).__name__
                raise SelectionError(
                    f"The subspaces are for factors of the length {basis.shape[-2]} at "
                    f"{show_path(path)!r}, but there is {came}. Make the subspaces from this model."
                )
            wide = at_least_float32(leaf)
            matched.append((keys, wide, basis.astype(wide.dtype), is_input))
        if not matched:
            paths = [show_path(path) for path in (*self.inputs, *self.outputs)]
            raise SelectionError(
                "The tree has none of the factors that the subspaces are for:\n"
                f"{bullets(paths)}\nGive the model of the subspaces, or a part of it that has the "
                "same structure, such as net.partition()[0]."
            )
        return matched


def stay_orthogonal(subspaces: Subspaces) -> optax.GradientTransformation:
    """Project the updates of `A` and `B`, so that training never enters the `subspaces`.

        optax.chain(optax.adamw(1e-3), stay_orthogonal(subspaces))

    Put it last: Adam rescales each number separately, so projecting the gradients alone would not
    suffice. Factors that start outside (`Subspaces.project`) stay outside, up to rounding, also
    under decay.

    **Raises:** at `init`, `SelectionError` if none of the factors train, or they have other shapes.
    """

    def init(params: PyTree) -> PyTree:
        expect_model(params, "stay_orthogonal")
        subspaces._projected(params)  # raises
        # A step that donates the state must not take the arrays of the caller.
        return jax.tree.map(jnp.copy, subspaces)

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        return state._projected(updates), state

    return optax.GradientTransformation(init, update)


def _shown(product: Product) -> str:
    return show_path(path_str(product.A.keys))


def _matrix_of(product: Product, adapter: LoRAWrapper) -> Array | None:
    """The weight before adapting, `(..., out, in)`, if it has the sizes of the product."""
    W = run(_weight_before, adapter, path_str(product.inner))
    A, B = product.A.array, product.B.array
    fits = W is not None and W.shape == (*A.shape[:-2], B.shape[-2], A.shape[-1])
    return W if fits and jnp.iscomplexobj(W) == jnp.iscomplexobj(A) else None


def _weight_before(adapter: LoRAWrapper, name: str) -> Array | None:
    """The layer's matrix before adapting, or the matrix `name` of a layer with several."""
    cls = MatrixAdapter.of(type(adapter))

    def of_layer(adapter: PyTree) -> Array | None:
        layer = at_least_float32(adapter).unwrap()
        return cls.matrices(layer).get(name) if name else cls.matrix(layer)

    return over_stack(of_layer, cls.stack_ndim(adapter.base))(adapter)


def _stays_away(product: Product, adapter: LoRAWrapper, V: Array, U: Array) -> bool:
    """Whether the update avoids `V` and `U`, up to rounding, if its factors do."""
    A, B = (at_least_float32(jnp.asarray(side.array)) for side in (product.A, product.B))
    V, U, ones = V.astype(A.dtype), U.astype(B.dtype), jnp.ones_like(B)  # `B` may be zero
    outside = A - A @ V @ _mH(V), ones - U @ (_mH(U) @ ones)
    moved = dict(zip((id(product.A.array), id(product.B.array)), outside, strict=True))
    adapter = at_least_float32(jtu.tree_map(lambda x: moved.get(id(x), x), adapter))
    if product.inner:  # one of several matrices of a layer, whose update is not available
        return not overrides(type(adapter), LoRAWrapper, "unwrap")
    cls = MatrixAdapter.of(type(adapter))
    form = over_stack(cls.low_rank_form, cls.stack_ndim(adapter.base))(adapter)
    if form is None or not form.is_product:
        return False
    parts = (form.A @ V, form.A), (_mH(U) @ form.B, form.B)
    return all(jnp.linalg.norm(part) <= 1e-3 * jnp.linalg.norm(whole) for part, whole in parts)


def _decomposed(W: Array) -> tuple[Array, Array]:
    U, _, Vt = jnp.linalg.svd(W, full_matrices=False)
    return U, _mH(Vt)


def _mH(x: Array) -> Array:
    return x.mT.conj()


def _sized(model: PyTree, size: float) -> list[tuple[Product, int]]:
    """The products of a model, and how many directions to keep of each."""
    fraction = size if isinstance(size, float) else 0.0
    count = int(size) if isinstance(size, numbers.Integral) and not isinstance(size, bool) else 0
    if count < 1 and not 0 < fraction < 1:
        raise SelectionError(
            "`size` must be a number of directions, 1 or more, or a fraction between 0 and 1, but "
            f"is {size!r}."
        )
    if not (listed := list(products(model))):
        raise SelectionError(f"The model holds no product `B A`. {ADVICE}")
    smaller = [min(x.A.array.shape[-1], x.B.array.shape[-2]) for x in listed]
    kept = [count or math.floor(fraction * n) for n in smaller]
    rows = zip(listed, smaller, kept, strict=True)
    if problems := [f"{_shown(x)}: {n} directions" for x, n, k in rows if k >= n]:
        raise SelectionError(
            f"`size={size}` leaves these matrices no direction to train:\n{bullets(problems)}\n"
            "Give a smaller number, a fraction such as size=0.5, or adapt other layers."
        )
    return list(zip(listed, kept, strict=True))
