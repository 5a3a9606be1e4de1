"""Adapters that share arrays: measured, stacked, converted."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.core.test_shared_arrays import X, adapted, mlp, moved, run

import jno.lora
from jno.lora import SelectionError, resolve


def test_sets_with_other_shared_arrays_do_not_stack() -> None:
    one = jno.lora.extract_adapters(adapted())
    other = jno.lora.AdapterSet(one.adapters, {**one.shared, "tied-A": jnp.ones((3, 5))})
    with pytest.raises(
        SelectionError, match=r"shared arrays: \{'tied-A': 'float32\[2, 5\]', .*set 1"
    ):
        jno.lora.stack_adapters([one, other])


def test_sets_stack_with_their_shared_arrays() -> None:
    models = [adapted(), moved(adapted())]
    for model in (models[0], resolve(models[0])):
        assert len(jno.lora.adapter_effects(model)) == 3
    stacked = jno.lora.stack_adapters([jno.lora.extract_adapters(m) for m in models])
    assert stacked.shared["tied-A"].shape == (2, 2, 5)

    def one(slot: Any, x: Any) -> Any:
        own = jno.lora.swap_adapters(mlp(), jno.lora.take_adapters(stacked, slot))
        return resolve(own)(x)

    found = jax.vmap(one)(jnp.array([1, 0]), jnp.asarray(X[:2]))
    expected = jnp.stack([run(models[1])[0], run(models[0])[1]])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
