"""Spreads of one adapted model, for ways that train one model and not five.

The members of the ensemble leave out a fold each, and the last member sees all examples. A spread
gives the mean and the variance of every member's outputs; for Laplace, one variance for each prior.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from jno.lora import resolve
from jno_lora_uncertainty import Ensemble

# Of an ensemble, its snapshots, its training inputs (an axis of members in front), inputs and a
# key. Returns means `(members, n, *points)` and variances `(priors, members, n, *points)`.
Spread = Callable[[Ensemble, Any, Any, Any, Any], tuple[Array, Array]]

_SAMPLES = 20
DROPPED = 0.1  # the fraction of the trained numbers that a mask sets to zero


def outputs(ensemble: Ensemble, x: Any) -> Float[Array, "k n ..."]:
    """The outputs of all members."""
    return ensemble.each(lambda member: jax.vmap(lambda x: ensemble.call(member, x))(x))


def none(ensemble: Ensemble, _: Any, __: Any, x: Any, ___: Any) -> tuple[Array, Array]:
    """No spread, so that the width is constant."""
    mean = outputs(ensemble, x)
    return mean, jnp.zeros_like(mean)[None]


def _sampled(
    ensemble: Ensemble, sample: Callable[[Any], Any], x: Any, key: Any
) -> tuple[Array, Array]:
    _, frozen = ensemble.partition()

    def of(key: Any) -> Array:
        return outputs(eqx.combine(sample(key), frozen), x)

    found = jax.lax.map(of, jax.random.split(key, _SAMPLES))
    return jnp.mean(found, axis=0), jnp.var(found, axis=0)[None]


def swag(ensemble: Ensemble, snapshots: Any, _: Any, x: Any, key: Any) -> tuple[Array, Array]:
    """SWAG: a Gaussian around the mean of the snapshots (Maddox et al., arXiv:1902.02476)."""

    def sample(key: Any) -> Any:
        leaves, structure = jax.tree.flatten(snapshots)
        keys = jax.random.split(key, len(leaves) + 1)
        # All arrays share the weights of the snapshots, as in the paper's low-rank part.
        weights = jax.random.normal(keys[-1], leaves[0].shape[:1]) / jnp.sqrt(2.0)

        def of_leaf(key: Any, leaf: Array) -> Array:
            mean, count = jnp.mean(leaf, axis=0), len(leaf)
            apart = leaf - mean
            low_rank = jnp.tensordot(weights.astype(leaf.dtype), apart, 1) / jnp.sqrt(count - 1.0)
            noise = jax.random.normal(key, mean.shape) / jnp.sqrt(2.0)
            diagonal = jnp.sqrt(jnp.mean(jnp.abs(apart) ** 2, axis=0)) * noise
            return mean + low_rank + diagonal.astype(leaf.dtype)

        return jax.tree.unflatten(structure, map(of_leaf, keys[:-1], leaves))

    return _sampled(ensemble, sample, x, key)


def dropout(ensemble: Ensemble, _: Any, __: Any, x: Any, key: Any) -> tuple[Array, Array]:
    """Masks of the trained numbers, as in training (Gal & Ghahramani, arXiv:1506.02142)."""
    trainable, _ = ensemble.partition()
    return _sampled(ensemble, lambda key: masked(trainable, key), x, key)


def masked(trainable: Any, key: Any) -> Any:
    """The trained arrays with a fraction of their numbers dropped, and the rest scaled up."""
    leaves, structure = jax.tree.flatten(trainable)

    def of_leaf(key: Any, leaf: Array) -> Array:
        kept = jax.random.bernoulli(key, 1 - DROPPED, leaf.shape)
        return jnp.where(kept, leaf / (1 - DROPPED), jnp.zeros_like(leaf))

    return jax.tree.unflatten(structure, map(of_leaf, jax.random.split(key, len(leaves)), leaves))


def laplace(mask: Callable[[Any], Any]) -> Spread:
    """Linearised Laplace over the arrays of `mask` (Immer et al., arXiv:2008.08216).

    The variance is exact for the Gauss-Newton matrix of the training outputs, of which every fourth
    point counts: `k(x, x) - k(x, X) (k(X, X) + prior)^-1 k(X, x)` with `k = J J^T`. The priors are
    multiples of the mean of `k(X, X)`. The best prior is chosen by held-out errors, which is more
    than evidence gives: in a trial, evidence covered all points.
    """

    def spread(ensemble: Ensemble, _: Any, seen: Any, x: Any, __: Any) -> tuple[Array, Array]:
        def of_member(member: Any, seen: Any) -> tuple[Array, Array]:
            def jacobian(x: Any) -> Array:
                trained, frozen = eqx.partition(member, mask(member))
                parts = jax.tree.map(
                    lambda a: (a.real, a.imag) if jnp.iscomplexobj(a) else a, trained
                )
                flat, back = ravel_pytree(parts)

                def call(flat: Array) -> Array:
                    joined = jax.tree.map(
                        lambda a, part: part[0] + 1j * part[1] if jnp.iscomplexobj(a) else part,
                        trained,
                        back(flat),
                    )
                    return ensemble.call(eqx.combine(joined, frozen), x)

                return jax.jacrev(call)(flat)

            known = jax.lax.map(lambda x: jacobian(x)[::4], seen)
            known = known.reshape(-1, known.shape[-1])
            values, vectors = jnp.linalg.eigh(known @ known.T)
            priors = jnp.mean(values) * jnp.asarray(PRIORS)

            def variance(x: Any) -> Array:
                J = jacobian(x)
                along = (J @ known.T) @ vectors
                shrunk = jax.vmap(lambda prior: along**2 @ (1 / (values + prior)))(priors)
                return jnp.maximum(jnp.sum(J**2, axis=-1) - shrunk, 0)

            mean = jax.vmap(lambda x: ensemble.call(member, x))(x)
            return mean, jnp.moveaxis(jax.lax.map(variance, x), 1, 0)

        # On a CPU, gradients of stacked convolutions take twice as long as one after another.
        mean, variance = jax.lax.map(
            lambda args: of_member(resolve(ensemble.member(args[0])), args[1]),
            (jnp.arange(ensemble.members), seen),
        )
        return mean, jnp.moveaxis(variance, 1, 0)

    return spread


PRIORS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
