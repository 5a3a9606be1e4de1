"""Our side of the task beside PhysicsNeMo: the same function of the same weights, fair rates."""

import math

import jax
import numpy as np
import pytest
from benchmarks.physicsnemo import FIRST, RATES, adapted, searched, tuned
from benchmarks.sides.jax_physicsnemo import Operator

from jno.lora import lora_report


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def physicsnemo(state, field):
    """The forward pass of PhysicsNeMo's `FNO`, from its state."""

    def dense(name, h):
        weight = state[f"{name}.weight"]
        return weight.reshape(weight.shape[:2]) @ h + state[f"{name}.bias"][:, None]

    h = np.stack([field, np.linspace(0, 1, len(field))])
    lift = "spec_encoder.lift_network"
    h = dense(f"{lift}.2.conv", gelu(dense(f"{lift}.0.conv", h)))
    for index in range(2):
        weights = state[f"spec_encoder.spconv_layers.{index}.weights1"]
        modes = weights.shape[2]
        spectrum = np.zeros((len(h), len(field) // 2 + 1), complex)
        product = np.einsum("ix,iox->ox", np.fft.rfft(h)[:, :modes], weights @ [1, 1j])
        spectrum[:, :modes] = product
        h = dense(f"spec_encoder.conv_layers.{index}", h) + np.fft.irfft(spectrum, len(field))
        h = gelu(h) if index == 0 else h
    for index in range(2):
        h = dense(f"decoder_net.layers.{index}.linear", h)
        h = h / (1 + np.exp(-h))
    return dense("decoder_net.final_layer.linear", h)[0]


def test_the_operator_is_physicsnemos_function_of_its_state():
    operator = Operator(jax.random.key(0), width=4, modes=3, layers=2)
    field = np.sin(np.arange(8, dtype=np.float32))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        ours = operator(field)
    np.testing.assert_allclose(ours, physicsnemo(operator.state(), field), atol=1e-6)
    rows = {row.path: row for row in lora_report(adapted(operator, 0, "lora 1, cp 4").module).rows}
    assert len(rows) == 9 and rows["decoder/0"].rank == 1


@pytest.mark.parametrize("best", [3e-3, 1e-6, 3.0])
def test_the_search_goes_on_while_the_best_rate_is_at_an_end(best):
    def row(rates):
        error = {rate: abs(math.log(rate / best)) for rate in rates}
        return {"runs": [{"rate": r, "validation": e, "test": e} for r, e in error.items()]}

    answer = searched(row, RATES[FIRST])
    tried = [run["rate"] for run in answer["runs"]]
    assert math.isclose(tuned(answer["runs"])[0], best)
    assert len(tried) == len(set(tried)) <= len(RATES)
