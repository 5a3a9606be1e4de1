"""Lookups in double precision, against NumPy: the law on the transposed table, and its columns.

The merged table, what is looked up, and every single derivative in the adapter's arrays; see
`zoo_cases.oracle`, and `zoo_cases.laws` for the methods' laws, written from their papers.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.pairs import pairwise
from zoo_cases import METHODS, assert_close, cast_floats
from zoo_cases.oracle import VALUE, Oracle

import jno_lora_zoo

# LoKr's and OFT's blocks divide neither the embeddings nor their size.
NUM, DIM, RANK = 7, 5, 3
WEIGHT = np.random.default_rng(5).normal(size=(NUM, DIM))


class DuckEmbedding(eqx.Module):
    """Somebody's own: a whole sequence at once, scaled."""

    weight: jax.Array
    num_embeddings: int = eqx.field(static=True)
    embedding_size: int = eqx.field(static=True)

    def __call__(self, ids):
        return 2.0 * self.weight[ids]


class ScaledEmbedding(eqx.nn.Embedding):
    def __call__(self, x, *, key=None):
        return self.embedding_size**0.5 * super().__call__(x, key=key)


def table(cls=eqx.nn.Embedding):
    return cls(weight=jnp.asarray(WEIGHT, jnp.float32))


def duck():
    return DuckEmbedding(jnp.asarray(WEIGHT, jnp.float32), NUM, DIM)


def once(layer, ids):
    return layer(ids)


def mapped(layer, ids):
    return jax.vmap(layer)(ids)


# name: (layer, ids, how it is called, and the factor of what it looks up)
# Repeated ids add up their gradients, and negative ones count from the end.
LOOKUPS = {
    "one": (table, np.array(4), once, 1.0),
    "batch": (table, np.array([1, 6, 6, -2, 0]), mapped, 1.0),
    "duck": (duck, np.array([[0, 3], [3, -1]]), once, 2.0),
    "subclass": (lambda: table(ScaledEmbedding), np.array([2, 5]), mapped, DIM**0.5),
}


def matrix(layer):
    return np.asarray(layer.weight).astype(np.float64).T


def looked_up(W, ids, factor):
    """Column `i` of `W` for every id `i`, in an axis behind those of the ids."""
    rows = [factor * W[:, i] for i in ids.reshape(-1)]
    return np.reshape(rows, (*ids.shape, -1))


def oracle(method, name):
    make, ids, call, factor = LOOKUPS[name]
    return Oracle(
        method,
        getattr(jno_lora_zoo, f"{method}Embedding"),
        make(),
        RANK,
        (ids,),
        lambda layer, W, at, ids: looked_up(W, ids, factor),
        matrix=matrix,
        call=call,
    )


everywhere = pytest.mark.parametrize(
    ("method", "name"),
    # A layer that does more than a lookup is called with the merged table, whatever the method.
    [
        *pairwise([(method, name) for name in ("one", "batch") for method in METHODS]),
        # Later methods with a column of their own.
        *((method, "batch") for method in ("OFTIn", "HRA", "DEFT")),
        *(("DoRA", name) for name in ("duck", "subclass")),
    ],
    scope="module",
)


@everywhere
def test_values_and_every_derivative_are_those_of_numpy(method, name):
    oracle(method, name).check()


@pytest.mark.parametrize("name", LOOKUPS)
def test_the_columns_are_what_equinox_looks_up(name):
    # The oracle must not be wrong in the same way: it is right for tables without adapters.
    make, ids, call, factor = LOOKUPS[name]
    with jax.enable_x64(True):
        layer = cast_floats(make(), jnp.float64)
        expected = np.asarray(call(layer, jnp.asarray(ids)))
    assert_close(looked_up(matrix(layer), ids, factor), expected, VALUE)
