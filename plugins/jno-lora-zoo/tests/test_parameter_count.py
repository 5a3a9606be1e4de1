"""How much trains, and what happens to a rank that a layer is too small for."""

import jax
from zoo_cases import EFFECTIVE_RANK, adapters, build, case, each, parameter_count
from zoo_cases.layers import LINEARS

from jno.lora import apply_lora, lora_trainable_filter


def trained_parameters(model):
    sizes = jax.tree.map(
        lambda leaf, trains: leaf.size if trains else 0, model, lora_trainable_filter(model)
    )
    return sum(jax.tree.leaves(sizes))


@adapters(linear=LINEARS, conv=("groups_straddled", "depthwise", "pointwise"))
def test_the_number_of_trained_parameters_is_the_formula(adapter, base):
    wrapper = build(adapter, base)
    rank = EFFECTIVE_RANK[adapter.method](base.rank, *base.matrix().shape)
    assert wrapper.rank == rank
    expected = parameter_count(adapter.method, base.rank, *base.matrix().shape)
    assert trained_parameters(wrapper) == expected


@each()
def test_a_rank_above_the_matrix_is_clamped(adapter):
    base = case(adapter.kind, "plain")  # a (5, 6) matrix
    model = {"encoder": base.layer}

    key = jax.random.key(0)
    adapted = apply_lora(model, rank=40, alpha=2.0, key=key, wrapper=adapter.cls)
    assert trained_parameters(adapted) == parameter_count(adapter.method, 40, 5, 6)
