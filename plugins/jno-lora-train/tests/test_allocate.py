"""A total rank, spread over layers by their statistics."""

from typing import Any

import numpy as np
import pytest

import jno.lora
from jno.lora import SelectionError


def statistics_of(**spectra: list[float]) -> dict[str, Any]:
    """Statistics whose covariance and gradient have these numbers on the diagonal."""
    return {
        path: {"input_covariance": np.diag(values), "gradient": np.sqrt(np.diag(values))}
        for path, values in spectra.items()
    }


def test_allocation_by_variance_compares_parts_of_each_layer() -> None:
    found = jno.lora.allocate(statistics_of(a=[8.0, 1.0, 1.0], b=[0.5, 0.3, 0.2]), budget=3)
    assert {row.path: row.rank for row in found} == {"a": 1, "b": 2}
    assert [spec.rank for spec in found.specs] == [1, 2] and found.specs[0].target == "^a$"
    assert "80.0%" in str(found) and "3 in all" in str(found)


def test_allocation_by_gradient_compares_energies() -> None:
    found = jno.lora.allocate(
        statistics_of(a=[8.0, 2.0, 1.0], b=[0.5, 0.3, 0.2]), budget=3, method="gradient", least=0
    )
    assert {row.path: row.rank for row in found} == {"a": 3, "b": 0}
    assert [spec.target for spec in found.specs] == ["^a$"]


def test_allocation_keeps_its_bounds_and_counts_a_stack_whole() -> None:
    stacked = {"input_covariance": np.stack([np.diag([3.0, 2.0]), np.diag([1.0, 4.0])])}
    found = jno.lora.allocate({"s": stacked, **statistics_of(a=[1.0, 1.0, 1.0])}, budget=5, most=2)
    assert {row.path: row.rank for row in found} == {"s": 1, "a": 2}


def test_allocation_centres_by_the_mean() -> None:
    mean = np.array([3.0, 0.0])
    covariance = np.diag([1.0, 2.0]) + np.outer(mean, mean)
    both = {"a": {"input_covariance": covariance, "input_mean": mean}}
    found = jno.lora.allocate({**both, **statistics_of(b=[0.9, 0.1])}, budget=3)
    assert next(row.part for row in found if row.path == "a") == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"budget": 1}, "need 2"),
        ({"budget": 0}, "`budget` must be"),
        ({"budget": 4, "method": "luck"}, "'variance' or 'gradient'"),
    ],
)
def test_unusable_budgets(arguments: Any, message: str) -> None:
    with pytest.raises(SelectionError, match=message):
        jno.lora.allocate(statistics_of(a=[1.0], b=[1.0]), **arguments)


def test_a_missing_statistic_is_named() -> None:
    with pytest.raises(SelectionError, match="no 'gradient', only input_mean"):
        jno.lora.allocate({"a": {"input_mean": np.ones(2)}}, budget=4, method="gradient")


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({"least": -1}, "`least` at least 0.*-1"),
        ({"least": 3, "most": 1}, "`most` at least.*3 and 1"),
    ],
)
def test_unusable_bounds_of_ranks(bounds: Any, message: str) -> None:
    with pytest.raises(SelectionError, match=message):
        jno.lora.allocate(statistics_of(a=[1.0, 1.0]), budget=2, **bounds)
    with pytest.raises(SelectionError, match="`statistics` are empty"):
        jno.lora.allocate({}, budget=2)
