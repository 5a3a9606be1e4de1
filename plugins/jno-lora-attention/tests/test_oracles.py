"""Values and gradients in double precision, against attention in NumPy.

Nothing is shared with what is tested but the arrays. So the bounds are those of double precision,
and every single derivative is compared with a central difference of the reference: in each array
that trains and in query, key and value, of the adapter's own way and of the merged layer's.
"""

import dataclasses
import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import (
    LETTERS,
    Prefix,
    flat,
    multihead,
    perturbed,
    projections_of,
    random_layer,
    scaled_projections,
    with_low_rank,
)
from zoo_cases import assert_close, central_difference

from jno.lora import lora_trainable_filter
from jno_lora_attention import IA3Attention, LoRAAttention, PrefixAttention

RANK, ALPHA = 2, 3.0
GRADIENT = 1e-7
VALUE = 1e-12

INPUTS = ("query", "key", "value")
HEADS, QUERIES, TOKENS = 3, 4, 5
# No two sizes are equal where the layer allows it.
SIZES = {"query_size": 5, "key_size": 7, "value_size": 8, "output_size": 4}
SIZES |= {"num_heads": HEADS, "qk_size": 2, "vo_size": 3}
BIASES = {f"use_{name}_bias": True for name in (*INPUTS, "output")}


def mask_of(*shape):
    seen = np.random.default_rng(2).random(shape) < 0.6
    seen[..., 0] = True  # there is no softmax over nothing
    return seen


MASKS = {
    "no mask": None,
    "one mask": mask_of(QUERIES, TOKENS),
    "mask per head": mask_of(HEADS, QUERIES, TOKENS),
}


def turned(query, key, value):
    """A change that a model may make to the heads; written so that NumPy and JAX both can."""
    return query[..., ::-1] - 1.0, 2.0 * key, value[::-1]


@dataclasses.dataclass(frozen=True)
class Case:
    """An adapter, and on what it is tried."""

    cls: Any
    projections: str = ""
    mask: str = "no mask"
    biases: bool = True
    process: Any = None

    def __str__(self):
        biases = "biases" if self.biases else "no biases"
        process = "turned" if self.process else ""
        parts = (self.cls.__name__, self.projections, self.mask, biases, process)
        return "-".join(filter(None, parts))


CASES = [
    Case(LoRAAttention, "qv", "mask per head"),
    Case(LoRAAttention, "qkvo", "one mask"),
    Case(LoRAAttention, "ko", biases=False, process=turned),
    Case(IA3Attention, mask="mask per head"),
    Case(IA3Attention, biases=False, process=turned),
    Case(PrefixAttention, mask="mask per head"),
    Case(PrefixAttention, biases=False, process=turned),
]
MERGEABLE = [case for case in CASES if case.cls is not PrefixAttention]
every_case = pytest.mark.parametrize("case", CASES, ids=str)


@dataclasses.dataclass(frozen=True)
class Result:
    """The results of an adapted layer: its output, and the gradients of a loss by name."""

    output: np.ndarray
    gradients: dict[str, np.ndarray]


@eqx.filter_jit
def computed(wrapper, x, mask, weights, process, ways):
    """Output, and the gradients of `sum(weights * sin(y))`, in each of these ways."""
    trainable, frozen = eqx.partition(wrapper, lora_trainable_filter(wrapper))

    def loss(trainable, x, way):
        y = way(eqx.combine(trainable, frozen))(*x, mask=mask, process_heads=process)
        return jnp.sum(weights * jnp.sin(y)), y

    def by(way):
        gradient = jax.grad(lambda *args: loss(*args, way), (0, 1), has_aux=True)
        (of_arrays, of_x), y = gradient(trainable, x)
        return y, {**flat(of_arrays), **dict(zip(INPUTS, of_x, strict=True))}

    return [by(way) for way in ways]


def as_it_is(wrapper):
    return wrapper


def merged(wrapper):
    return wrapper.merge()


@functools.lru_cache(maxsize=len(CASES))  # three tests want each
def both(case):
    """The results of JAX, and those of NumPy as functions of the arrays."""
    random = np.random.default_rng(4)
    ways = (as_it_is, merged) if case in MERGEABLE else (as_it_is,)
    mask = MASKS[case.mask]
    with jax.enable_x64(True):
        layer = random_layer(**SIZES, **(BIASES if case.biases else {}))
        options = {"projections": case.projections} if case.projections else {}
        wrapper = perturbed(case.cls(layer, RANK, ALPHA, key=jax.random.key(3), **options))
        x = inputs(layer)
        weights = random.normal(size=(QUERIES, SIZES["output_size"]))
        results = computed(
            wrapper, *jax.tree.map(jnp.asarray, (x, mask, weights)), case.process, ways
        )
        results = [Result(*result) for result in jax.device_get(results)]
        plain = jax.device_get(wrapper.merge()) if case in MERGEABLE else None
        arrays = {name: np.asarray(array) for name, array in flat(wrapper).items()}
    assert {a.dtype for a in (*arrays.values(), results[0].output)} == {np.dtype(np.float64)}
    arrays |= dict(zip(INPUTS, x, strict=True))
    base = projections_of(layer)

    def law(**changed):
        """The projections of the plain layer that computes the same."""
        new = {**arrays, **changed}
        if case.cls is LoRAAttention:
            A, B = ({p: new[f"lora_{ab}/{p}"] for p in case.projections} for ab in "AB")
            return with_low_rank(base, A, B, ALPHA / RANK)
        return scaled_projections(base, {"k": new["key_scale"], "v": new["value_scale"]})

    def output(**changed):
        new = {**arrays, **changed}
        x = tuple(new[name] for name in INPUTS)
        projections, adapter = base, {}
        if case.cls is LoRAAttention:
            projections = law(**changed)
        elif case.cls is IA3Attention:
            adapter["scales"] = {"k": new["key_scale"], "v": new["value_scale"]}
        else:
            adapter["prefix"] = Prefix(new["prefix_keys"], new["prefix_values"], new["gate"])
        return multihead(projections, HEADS, x, mask, process=case.process, **adapter)

    return results, plain, arrays, law, output, weights


def inputs(layer):
    random = np.random.default_rng(5)
    sizes = (layer.query_size, layer.key_size, layer.value_size)
    shapes = zip((QUERIES, TOKENS, TOKENS), sizes, strict=True)
    return tuple(random.normal(size=shape) for shape in shapes)


@pytest.mark.parametrize("case", MERGEABLE, ids=str)
def test_the_merged_projections_are_the_law_to_double_precision(case):
    _, plain, _, law, *_ = both(case)
    for letter, expected in law().items():
        linear = getattr(plain, LETTERS[letter])
        assert linear.weight.dtype == np.float64
        assert_close(linear.weight, expected.weight, VALUE)
        assert (linear.bias is not None) == case.biases
        if case.biases:
            assert_close(linear.bias, expected.bias, VALUE)


@every_case
def test_the_output_is_that_of_loops_to_double_precision(case):
    results, _, _, _, output, _ = both(case)
    for result in results:
        assert_close(result.output, output(), VALUE)


@every_case
def test_every_derivative_is_a_central_difference_of_the_loops(case):
    results, _, arrays, _, output, weights = both(case)

    def loss(**changed):
        return np.sum(weights * np.sin(output(**changed)))

    assert all(result.gradients.keys() == arrays.keys() for result in results)
    for name, array in arrays.items():
        expected = central_difference(lambda x, name=name: loss(**{name: x}), array)
        for result in results:
            assert_close(result.gradients[name], expected, GRADIENT)


@pytest.mark.parametrize("mask", MASKS)
def test_the_loops_are_what_equinox_computes(mask):
    # The oracle must not be wrong in the same way: it is right for layers without adapters.
    with jax.enable_x64(True):
        layer = random_layer(**SIZES, **BIASES)
        x = inputs(layer)
        call = eqx.filter_jit(lambda x, mask: layer(*x, mask=mask, process_heads=turned))
        expected = np.asarray(call(*jax.tree.map(jnp.asarray, (x, MASKS[mask]))))
    actual = multihead(projections_of(layer), HEADS, x, MASKS[mask], process=turned)
    assert_close(actual, expected, VALUE)
