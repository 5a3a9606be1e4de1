"""The cost model: its formulas against what XLA says of compiled, never allocated blocks."""

import pathlib

import jax
import pytest
from benchmarks import cost_model
from benchmarks._adapter_costs import TERMS
from benchmarks.cost_model import BASES, BATCH, NAMES, Base, agreement
from tests.pairs import ALL

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "evidence" / "cost-model.md"
SMALL = Base(width=512, inner=1536, keys=256, heads=16, blocks=2)
# With fewer tokens the compiler would rather move some of the activations than the weights.
SETTINGS = {"devices": 8, "sequences": 16, "length": 128}


@pytest.mark.parametrize(
    ("method", "tensor"),
    [
        *(("lora", True), ("dora", True), ("oft", False)),
        *((("full", False), ("lora-fa", False)) if ALL else ()),
    ],
)
def test_formulas_agree_with_the_compiled_step(method, tensor):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        ratios = agreement(SMALL, method, 16, tensor=tensor, **SETTINGS)
    assert ratios["trained"] == 1 and ratios["arguments"] == 1
    # The formulas leave out norms, softmax, activations, and all that does not grow with the batch.
    assert 1 <= ratios["flops"] < 1.07
    assert ratios["moved"] > 1
    assert 0.9995 < ratios["summed"] < 1.005
    assert tensor or 0.9995 < ratios["gathered"] <= 1


def test_the_page_shows_what_the_formulas_say():
    page = PAGE.read_text()
    for base in BASES:
        assert cost_model.formulas(base) in page
    assert set(NAMES) == set(TERMS) and BATCH["devices"] == 8
