"""The error of a merge into the base's dtype, as `lora_report` measures it."""

import math

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest
from zoo_cases import perturb

import jno_lora_zoo
from jno.lora import Net, apply_lora, lora_report

LAYERS = ("LoRALinear", "DoRALinear", "PiSSALinear")


def adapted(name, dtype, size, getkey):
    layer = eqx.nn.Linear(24, 16, key=getkey(), dtype=dtype)
    return perturb(apply_lora([layer], 4, 4.0, key=getkey(), wrapper=name), size)


@pytest.mark.parametrize("name", LAYERS)
def test_it_is_what_rounding_the_merged_weight_takes_of_the_update(name, getkey):
    model = adapted(name, jnp.bfloat16, 1e-2, getkey)
    (row,) = lora_report(model, merge_error=True)
    (wrapper,) = model
    # By hand, in NumPy: the law on the weight that the base holds.
    wide = eqx.tree_at(lambda w: w.base.weight, wrapper, wrapper.base.weight.astype(jnp.float32))
    exact, before = (np.asarray(x.weight, np.float64) for x in (wide.merge(), wide.unwrap()))
    merged = np.asarray(wrapper.merge().weight.astype(jnp.float32), np.float64)
    expected = np.linalg.norm(merged - exact) / np.linalg.norm(exact - before)
    assert row.merge_error == pytest.approx(expected, rel=1e-3)
    assert 0 < row.merge_error < 10
    assert Net(model).summary().rows[0].merge_error is None  # unless it is asked for


def test_an_update_below_the_resolution_of_the_dtype_is_lost_whole(getkey):
    layer = eqx.nn.Linear(8, 8, key=getkey(), dtype=jnp.bfloat16)
    layer = eqx.tree_at(lambda m: m.weight, layer, jnp.ones_like(layer.weight))
    wrapper = jno_lora_zoo.IA3Linear(layer, 1, 1.0, key=getkey())
    wrapper = eqx.tree_at(lambda w: w.scale, wrapper, jnp.full(8, 1 + 1e-4))
    (row,) = lora_report(wrapper, merge_error=True)
    assert row.merge_error == pytest.approx(1.0)


def test_a_layer_that_nothing_changed_has_none_and_an_adapter_of_nan_nan(getkey):
    layer = eqx.nn.Linear(4, 4, key=getkey(), dtype=jnp.bfloat16)
    report = lora_report(apply_lora([layer], 2, key=getkey()), merge_error=True)
    assert report.rows[0].merge_error is None
    (line,) = (line for line in str(report).splitlines() if "LoRALinear" in line)
    assert line.split()[-1] == "-"
    model = adapted("LoRALinear", jnp.float16, math.nan, getkey)
    (row,) = lora_report(model, merge_error=True)
    assert row.merge_error is not None and math.isnan(row.merge_error)
