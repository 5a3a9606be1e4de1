"""Values and every derivative in double precision, against attention in NumPy and differences."""

import dataclasses
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
    projections_of,
    random_layer,
    scaled_projections,
    with_low_rank,
)
from zoo_cases import assert_close, central_difference, perturb

from jno.lora import apply_lora, lora_trainable_filter
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


@eqx.filter_jit
def computed(wrapper, x, mask, weights, process, ways):
    """By way: the output, and the gradients of `sum(weights * sin(y))`."""
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


def inputs(layer):
    random = np.random.default_rng(5)
    sizes = (layer.query_size, layer.key_size, layer.value_size)
    shapes = zip((QUERIES, TOKENS, TOKENS), sizes, strict=True)
    return tuple(random.normal(size=shape) for shape in shapes)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_law_the_output_and_every_derivative_are_those_of_loops(case):
    random, mask, is_mergeable = np.random.default_rng(4), MASKS[case.mask], case in MERGEABLE
    with jax.enable_x64(True):
        layer = random_layer(**SIZES, **(BIASES if case.biases else {}))
        options = {"projections": case.projections} if case.projections else {}
        how = {"key": jax.random.key(3), "wrapper": case.cls, "options": options}
        wrapper = perturb(apply_lora(layer, RANK, ALPHA, **how))
        x = inputs(layer)
        weights = random.normal(size=(QUERIES, SIZES["output_size"]))
        ways = (as_it_is, merged) if is_mergeable else (as_it_is,)
        given = jax.tree.map(jnp.asarray, (x, mask, weights))
        results = jax.device_get(computed(wrapper, *given, case.process, ways))
        plain = jax.device_get(wrapper.merge()) if is_mergeable else None
        arrays = {name: np.asarray(array) for name, array in flat(wrapper).items()}
    assert {a.dtype for a in (*arrays.values(), results[0][0])} == {np.dtype(np.float64)}
    arrays |= dict(zip(INPUTS, x, strict=True))
    base = projections_of(layer)

    def law(new):
        """The projections of the plain layer that computes the same."""
        if case.cls is LoRAAttention:
            A, B = ({p: new[f"lora_{ab}/{p}"] for p in case.projections} for ab in "AB")
            return with_low_rank(base, A, B, ALPHA / RANK)
        return scaled_projections(base, {p: new[f"scale/{p}"] for p in "kv"})

    def output(new):
        projections, adapter = base, {}
        if case.cls is LoRAAttention:
            projections = law(new)
        elif case.cls is IA3Attention:
            adapter["scales"] = {p: new[f"scale/{p}"] for p in "kv"}
        else:
            adapter["prefix"] = Prefix(new["prefix_keys"], new["prefix_values"], new["gate"])
        x = tuple(new[name] for name in INPUTS)
        return multihead(projections, HEADS, x, mask, process=case.process, **adapter)

    for letter, expected in law(arrays).items() if is_mergeable else ():
        linear = getattr(plain, LETTERS[letter])
        assert_close(linear.weight, expected.weight, VALUE)
        assert (linear.bias is not None) == case.biases
        if case.biases:
            assert_close(linear.bias, expected.bias, VALUE)
    for y, gradients in results:
        assert_close(y, output(arrays), VALUE)
        assert gradients.keys() == arrays.keys()
    for name, array in arrays.items():

        def loss(array, name=name):
            return np.sum(weights * np.sin(output({**arrays, name: array})))

        expected = central_difference(loss, array)
        for _, gradients in results:
            assert_close(gradients[name], expected, GRADIENT)
