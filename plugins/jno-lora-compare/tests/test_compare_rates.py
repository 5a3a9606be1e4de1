"""Comparing at several learning rates: each candidate at its best, as the loss or a score says."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compare_cases import loss

from jno.lora import SelectionError, compare

RATES = (1e-3, 1e-1, 1e3)  # too small, good, and too large


@pytest.fixture(scope="module")
def model():
    return eqx.nn.Linear(3, 2, key=jax.random.key(0))


@pytest.fixture(scope="module")
def batches():
    x = jax.random.normal(jax.random.key(1), (8, 3))
    return [(x, x[:, :2] ** 2)]


def compared(model, batches, wrappers=("lora", "full", "none"), **changed):
    settings = {"steps": 10, "key": jax.random.key(2), "rank": 1, "learning_rate": RATES}
    return compare(model, loss, batches, wrappers, **settings | changed)


@pytest.fixture(scope="module")
def comparison(model, batches):
    return compared(model, batches)


def test_each_is_trained_at_its_best_rate(comparison, model, batches):
    assert "at the best of the rates 0.001, 0.1, 1000" in str(comparison)
    for row in comparison.rows[:2]:
        alone = [compared(model, batches, row.name, learning_rate=rate).rows[0] for rate in RATES]
        best = min(alone, key=lambda one: one.final_loss)
        assert row.learning_rate == best.learning_rate == 1e-1
        assert row.losses == pytest.approx(best.losses, rel=1e-6)
    nothing = comparison.rows[-1]
    assert (nothing.name, nothing.learning_rate) == ("none", None)
    assert len(set(nothing.losses)) == 1 and len(nothing.losses) == 10


def test_a_score_decides_instead_of_the_loss(model, batches):
    def moved_least(trained):
        """Without a merge: an adapter that trained at a small rate hardly changes the output."""
        x, _ = batches[0]
        return -jnp.max(jnp.abs(jax.vmap(trained)(x) - jax.vmap(model)(x)))

    rows = {row.name: row for row in compared(model, batches, score=moved_least)}
    assert rows["lora"].learning_rate == rows["full"].learning_rate == 1e-3
    assert rows["none"].score == 0.0
    for row in rows.values():
        assert row.score == float(moved_least(row.model))


def test_later_numbers_of_a_score_decide_between_equal_ones(model, batches):
    def tied(trained):
        return 0.5, -loss(trained, batches[0])

    comparison = compared(model, batches, score=tied)
    assert [row.learning_rate for row in comparison] == [1e-1, 1e-1, None]
    assert [row.score for row in comparison] == [0.5] * 3
    assert " score " in str(comparison)


def test_no_number_is_worse_than_any(model, batches):
    def score(trained):
        # Of the model at the largest rate, which is far from everything.
        value = loss(trained, batches[0])
        return jnp.where(value < 1e3, -1e6, jnp.nan)

    comparison = compared(model, batches, score=score, learning_rate=(1e3, 1e-3))
    assert " rate " in str(comparison)
    rows = comparison.rows
    assert rows[1].learning_rate == 1e-3 and not math.isnan(rows[1].score)


def test_half_precision_trains_as_well(model, batches):
    half, batch = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (model, batches))
    rates = np.logspace(-2, -1, 2)
    full, nothing = compared(half, batch, ["full", "none"], learning_rate=rates)
    assert full.final_loss < 0.9 * nothing.final_loss
    assert full.model.weight.dtype == jnp.bfloat16


def test_an_optimiser_has_a_rate_of_its_own(model, batches):
    with pytest.raises(SelectionError, match="leave out `learning_rate` or"):
        compared(model, batches, optimizer=optax.sgd(1e-2))


@pytest.mark.parametrize(
    "rates",
    [(), 0.0, (1e-3, -1.0), float("nan"), "large"],
    ids=str,
)
@pytest.mark.usefixtures("unchecked")
def test_a_rate_that_cannot_train_is_refused(model, batches, rates):
    with pytest.raises(SelectionError, match="must be a positive number, or several"):
        compared(model, batches, learning_rate=rates)
