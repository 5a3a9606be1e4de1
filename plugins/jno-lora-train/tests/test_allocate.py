"""A total rank, spread over layers by their statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jno.lora import SelectionError, allocate
from jno.lora.types import Statistics


def statistics_of(**spectra):
    """Statistics whose covariance and gradient have these numbers on the diagonal."""
    return {
        path: {"input_covariance": np.diag(values), "gradient": np.sqrt(np.diag(values))}
        for path, values in spectra.items()
    }


def ranks(*args, **kwargs):
    return {row.path: row.rank for row in allocate(*args, **kwargs)}


def test_allocation_by_variance_compares_parts_of_each_layer():
    found = allocate(statistics_of(a=[8.0, 1.0, 1.0], b=[0.5, 0.3, 0.2]), budget=3)
    assert {row.path: row.rank for row in found} == {"a": 1, "b": 2}
    assert [spec.rank for spec in found.specs] == [1, 2] and found.specs[0].target == "^a$"
    assert "80.0%" in str(found) and "3 in all" in str(found)


def test_allocation_by_gradient_compares_energies():
    statistics = statistics_of(a=[8.0, 2.0, 1.0], b=[0.5, 0.3, 0.2])
    found = allocate(statistics, budget=3, method="gradient", least=0)
    assert {row.path: row.rank for row in found} == {"a": 3, "b": 0}
    assert [spec.target for spec in found.specs] == ["^a$"]


def test_allocation_keeps_its_bounds_and_counts_a_stack_whole():
    stacked = {"input_covariance": np.stack([np.diag([3.0, 2.0]), np.diag([1.0, 4.0])])}
    both = {"s": stacked, **statistics_of(a=[1.0, 1.0, 1.0])}
    assert ranks(both, budget=5, most=2) == {"s": 1, "a": 2}
    means = jax.tree.map(jnp.asarray, statistics_of(a=[1.0] * 6, b=[1.0] * 2))
    of_matrices = Statistics(means, {"a": (2, 6), "b": (6, 2)})
    assert ranks(of_matrices, budget=20) == {"a": 2, "b": 2}


def test_allocation_centres_by_the_mean():
    mean = np.array([3.0, 0.0])
    covariance = np.diag([1.0, 2.0]) + np.outer(mean, mean)
    both = {"a": {"input_covariance": covariance, "input_mean": mean}}
    found = allocate({**both, **statistics_of(b=[0.9, 0.1])}, budget=3)
    assert next(row.part for row in found if row.path == "a") == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"budget": 1}, "need 2"),
        ({"budget": 0}, "`budget` must be"),
        ({"least": -1}, "`least` at least 0.*-1"),
        ({"least": 3, "most": 1}, "`most` at least.*3 and 1"),
        ({"method": "luck"}, "'variance' or 'gradient'"),
        ({"statistics": {}}, "`statistics` are empty"),
        ({"statistics": {"a": {"input_mean": 0}}, "method": "gradient"}, "only input_mean"),
    ],
)
def test_unusable_arguments(arguments, message):
    with pytest.raises(SelectionError, match=message):
        allocate(**{"statistics": statistics_of(a=[1.0], b=[1.0]), "budget": 4, **arguments})
