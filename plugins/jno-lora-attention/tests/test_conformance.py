"""Every attention adapter keeps every promise, as the kit checks it."""

import equinox as eqx
import jax
from zoo_cases import check_kind

from jno_lora_attention import IA3Attention, LoRAAttention, PrefixAttention
from jno_lora_testing import (
    WrapperCase,
    invariant,
    parametrize_with_checks,
    permutation,
    standard_cases,
)

HEADS, SIZE, QK, VO = 2, 6, 4, 3


def base(key):
    return eqx.nn.MultiheadAttention(
        HEADS, SIZE, qk_size=QK, vo_size=VO, use_key_bias=True, use_output_bias=True, key=key
    )


def inputs(key):
    keys = jax.random.split(key, 3)
    return tuple(jax.random.normal(k, (n, SIZE)) for k, n in zip(keys, (3, 5, 5), strict=True))


# Without a mask and positions, attention does not see the order of the tokens.
PERMUTATIONS = (
    permutation(3, inputs=(0,), name="permutation of the queries"),
    invariant(permutation(5, inputs=(1, 2)), name="permutation of the keys and values"),
)


def case(adapter, parameters, **more):
    given = {"parameters": parameters, "symmetries": PERMUTATIONS, **more}
    return WrapperCase(adapter, base, inputs, **given)


def further_cases(adapter):
    """A mask with dropout and its key, and dropout switched off by `inference`."""
    return [case for case in standard_cases(adapter) if "*" not in case.checks]


@parametrize_with_checks(
    [
        *(c for a in (LoRAAttention, IA3Attention, PrefixAttention) for c in further_cases(a)),
        case(LoRAAttention, 2 * (SIZE + HEADS * QK + SIZE + HEADS * VO)),
        case(IA3Attention, HEADS * (QK + VO)),
        case(PrefixAttention, 2 * HEADS * (QK + VO) + HEADS),
    ]
)
def test_conformance(check):
    check()


def test_every_projection_keeps_the_values():
    parameters = 2 * (4 * SIZE + 2 * HEADS * QK + 2 * HEADS * VO)
    check_kind(case(LoRAAttention, parameters, options={"projections": "qkvo"}))
