"""`disabled` gives the layer before adapting, and a sum adds the changes, whatever the method."""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from tests.pairs import ALL
from zoo_cases import ALL_METHODS, OPTIONS, WAYS, assert_close, made, perturb

import jno_lora_zoo
from jno.lora import (
    LoRAWrapper,
    SelectionError,
    disabled,
    extract_adapters,
    merge_lora,
    sum_adapters,
)

BASE = eqx.nn.Linear(8, 6, key=jr.key(0))
X = jnp.linspace(-1, 1, 8)
SHARING = {"VeRAShared", "VBLoRA", "TiedLoRA"}
WEIGHTS = {"method": 0.5, "lora": -1.5}
# With a start from data, a bias that it adapts, and shared arrays.
METHODS = ALL_METHODS if ALL else (*WAYS, "CorDA", "RoAd", "VeRAShared")


def adapted(method, seed=1):
    cls, options = getattr(jno_lora_zoo, method + "Linear"), OPTIONS.get(method, {})
    return perturb(made(cls, BASE, 2, 3.0, key=jr.key(seed), **options), seed=seed)


@pytest.fixture(scope="module")
def lora():
    return adapted("LoRA", 2)


@eqx.filter_jit
def outputs(adapter, lora, is_added, x):
    sets = {"method": extract_adapters(adapter), "lora": extract_adapters(lora)} if is_added else {}
    total = sum_adapters(BASE, sets, weights=WEIGHTS) if is_added else adapter
    merged = merge_lora(total)
    changes = [merge_lora(adapter), merge_lora(lora)]
    return adapter(x), disabled(adapter)(x), total(x), merged, merged(x), changes


@pytest.mark.parametrize("method", METHODS)
def test_the_base_and_a_sum_with_lora(method, lora):
    adapter, is_added = adapted(method), method not in SHARING
    after, reference, y, merged, y_merged, changed = outputs(adapter, lora, is_added, X)
    before = BASE(X)
    assert not np.allclose(after, before, atol=1e-3)
    if type(adapter).unwrap is LoRAWrapper.unwrap:
        assert np.array_equal(reference, before)
        assert disabled(adapter).weight is BASE.weight  # no copy
    else:  # the adapter replaced the weight, and gives it back up to rounding
        np.testing.assert_allclose(reference, before, atol=1e-6)
    if not is_added:
        with pytest.raises(SelectionError, match="shares arrays between layers"):
            sum_adapters(BASE, {"method": extract_adapters(adapter)})
        return
    for name in ("weight", "bias"):
        W, *ends = (np.asarray(getattr(x, name), np.float64) for x in (BASE, *changed))
        expected = W + sum(w * (end - W) for w, end in zip(WEIGHTS.values(), ends, strict=True))
        assert_close(getattr(merged, name), expected, 2e-6)
    assert_close(y, y_merged, 5e-6)
