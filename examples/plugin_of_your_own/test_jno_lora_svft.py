"""The plugin keeps every promise that jno-lora makes, and is found by name."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jno_lora_svft import SVFTConv, SVFTLinear

from jno.lora import Net
from jno_lora_testing import WrapperCase, parametrize_with_checks

CASES = [
    WrapperCase(
        SVFTLinear,
        base=lambda key: eqx.nn.Linear(6, 4, key=key),
        inputs=lambda key: (jax.random.normal(key, (6,)),),
        rank=2,
        parameters=2,
    ),
    WrapperCase(
        SVFTConv,
        base=lambda key: eqx.nn.Conv2d(3, 4, 2, key=key),
        inputs=lambda key: (jax.random.normal(key, (3, 5, 5)),),
        rank=2,
        parameters=2,
    ),
]


@parametrize_with_checks(CASES)
def test_conformance(check):
    """One test for each promise."""
    check()


def test_it_is_found_by_name():
    """Every layer of a model is adapted by `wrapper="svft"`."""
    model = [
        eqx.nn.Conv1d(2, 3, 3, key=jax.random.key(0)),
        eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(1)),
    ]
    net = Net(model).lora(rank=2, alpha=2, wrapper="svft")
    assert [row.wrapper for row in net.summary()] == [SVFTConv, SVFTLinear, SVFTLinear]


def test_it_trains_singular_values():
    """The paper: the singular vectors stay, and the values move by `m`."""
    layer = eqx.nn.Linear(6, 4, key=jax.random.key(0))
    adapter = Net(layer).lora(rank=2, wrapper="svft").module
    adapter = eqx.tree_at(lambda a: a.m, adapter, jnp.array([0.5, 0.25]))
    before, after = (
        jnp.linalg.svd(linear.weight, compute_uv=False) for linear in (layer, adapter.merge())
    )
    assert jnp.allclose(after, before + jnp.array([0.5, 0.25, 0, 0]), atol=1e-5)
