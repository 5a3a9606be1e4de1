"""Every attention adapter keeps every promise, as the kit checks it."""

import equinox as eqx
import jax
from zoo_cases import check_kind

from jno.lora.testing import (
    WrapperCase,
    invariant,
    parametrize_with_checks,
    permutation,
    standard_cases,
)
from jno_lora_attention import IA3Attention, LoRAAttention, PrefixAttention

HEADS, SIZE, QK, VO = 2, 6, 4, 3


def base(key):
    return eqx.nn.MultiheadAttention(
        HEADS, SIZE, qk_size=QK, vo_size=VO, use_key_bias=True, use_output_bias=True, key=key
    )


def inputs(key):
    q, k, v = jax.random.split(key, 3)
    return (
        jax.random.normal(q, (3, SIZE)),
        jax.random.normal(k, (5, SIZE)),
        jax.random.normal(v, (5, SIZE)),
    )


# Without a mask and positions, attention does not see the order of the tokens.
PERMUTATIONS = (
    permutation(3, inputs=(0,), name="permutation of the queries"),
    invariant(permutation(5, inputs=(1, 2)), name="permutation of the keys and values"),
)


def further_cases(adapter):
    """A mask with dropout and its key, and dropout switched off by `inference`."""
    return [case for case in standard_cases(adapter) if "*" not in case.checks]


@parametrize_with_checks(
    [
        *further_cases(LoRAAttention),
        *further_cases(IA3Attention),
        *further_cases(PrefixAttention),
        WrapperCase(
            LoRAAttention,
            base,
            inputs,
            parameters=2 * (SIZE + HEADS * QK + SIZE + HEADS * VO),
            symmetries=PERMUTATIONS,
        ),
        WrapperCase(
            IA3Attention, base, inputs, parameters=HEADS * (QK + VO), symmetries=PERMUTATIONS
        ),
        WrapperCase(
            PrefixAttention,
            base,
            inputs,
            parameters=2 * HEADS * (QK + VO) + HEADS,
            symmetries=PERMUTATIONS,
        ),
    ]
)
def test_conformance(check):
    check()


def test_every_projection_keeps_the_values():
    check_kind(
        WrapperCase(
            LoRAAttention,
            base,
            inputs,
            options={"projections": "qkvo"},
            parameters=2 * (4 * SIZE + 2 * HEADS * QK + 2 * HEADS * VO),
            symmetries=PERMUTATIONS,
        )
    )
