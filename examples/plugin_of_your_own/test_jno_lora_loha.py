"""The plugin keeps every promise that jno-lora makes, and is found by name."""

import equinox as eqx
import jax
from jno_lora_loha import LoHaConv, LoHaLinear

from jno.lora import Net
from jno.lora.testing import WrapperCase, parametrize_with_checks

CASES = [
    WrapperCase(
        LoHaLinear,
        base=lambda key: eqx.nn.Linear(6, 4, key=key),
        inputs=lambda key: (jax.random.normal(key, (6,)),),
        rank=2,
        parameters=2 * 2 * (6 + 4),
    ),
    WrapperCase(
        LoHaConv,
        base=lambda key: eqx.nn.Conv2d(3, 4, 2, key=key),
        inputs=lambda key: (jax.random.normal(key, (3, 5, 5)),),
        rank=2,
        parameters=2 * 2 * (3 * 2 * 2 + 4),
    ),
]


@parametrize_with_checks(CASES)
def test_conformance(check):
    """One test for each promise."""
    check()


def test_it_is_found_by_name():
    """Every layer of a model is adapted by `wrapper="loha"`."""
    model = [
        eqx.nn.Conv1d(2, 3, 3, key=jax.random.key(0)),
        eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(1)),
    ]
    net = Net(model).lora(rank=2, alpha=2, wrapper="loha")
    assert [row.wrapper for row in net.summary()] == [LoHaConv, LoHaLinear, LoHaLinear]
