"""Adapting, merging and unwrapping never gather the base.

Two witnesses: each program of the core is read after partitioning, for collectives and memory; and
between programs, all arrays that exist on any device are listed.
"""

import functools
import itertools
import re
import sys
from contextlib import contextmanager

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec as P
from tests.pairs import ALL

from jno.lora import _run, apply_lora, merge_lora, unwrap_lora

from .layouts import (
    ALL_METHODS,
    BY_SVD,
    CUT,
    LAYOUTS,
    Small,
    adapt,
    assert_same_sharding,
    gathered,
    mesh_of,
    shard,
    wrappers_of,
)

# A low-rank update, a law of the whole weight, a decomposition, and replicated factors.
PAIRS = [("LoRA", "tensor"), ("LoRA", "fsdp"), ("DoRA", "fsdp"), ("DoRA", "2d"), ("PiSSA", "2d")]
PAIRS += [("LoKr", "2d")]

WIDE = {"width": 32, "hidden": 64}


@functools.cache  # it is asked at hundreds of thousands of calls
def is_ours(file):
    """Whether a file is a source of our packages, wherever these lie."""
    return re.search(r"/(jno/lora|jno_lora_\w+)/", file) is not None


class Programs:
    """The programs that the core compiles and runs: their texts, and the memory they take."""

    def __init__(self, jitted):
        self.texts = []
        self.temporary = []  # bytes on each device, beside inputs and outputs
        self.jitted = jitted
        self.trace = jitted.trace

    def __call__(self, function, form, arrays):
        """Run a program of the core, the very executable that is read here."""
        executable = self.jitted.lower(function, form, arrays).compile()
        self.texts.append(executable.as_text())
        self.temporary.append(executable.memory_analysis().temp_size_in_bytes)
        return executable(arrays)


@pytest.fixture
def programs(monkeypatch):
    recorder = Programs(_run._program)
    monkeypatch.setattr(_run, "_program", recorder)
    return recorder


@contextmanager
def watching():
    """The elements that any new array holds on one device, at any call in our packages."""
    before = {id(array): array for array in jax.live_arrays()}
    sizes: set[int] = set()

    def look(frame, event, arg):
        if event in ("call", "return") and is_ours(frame.f_code.co_filename):
            for array in jax.live_arrays():
                if id(array) not in before:
                    sizes.add(int(np.prod(array.sharding.shard_shape(array.shape))))

    sys.setprofile(look)
    try:
        yield sizes
    finally:
        sys.setprofile(None)


def one_layer(layout):
    """A linear layer of 128 * 64 elements in half precision, alone."""
    model = shard(Small(jax.random.key(0), **WIDE), LAYOUTS[layout], mesh_of(layout))
    return jax.tree.map(lambda a: a.astype(jnp.bfloat16), model.up)


@pytest.mark.parametrize(
    ("method", "layout"), [*itertools.product(ALL_METHODS, CUT)] if ALL else PAIRS
)
def test_adapting_and_merging_gather_nothing(method, layout, programs):
    layer = one_layer(layout)
    whole = layer.weight.size
    with watching() as sizes:
        adapted = adapt(layer, wrappers_of(method))
        merged, unwrapped = merge_lora(adapted), unwrap_lora(adapted)
    assert_same_sharding([merged, unwrapped], [layer, layer])
    # Nothing of the size of the weight is left, or is ever an array.
    assert max(sizes) <= whole / 8
    construct, merge, unwrap = programs.texts
    assert not gathered(merge) and not gathered(unwrap)
    if method in BY_SVD:
        # The exception, as documented: inside the program, for one layer at a time.
        assert max(gathered(construct)) == whole
        assert 4 * whole <= programs.temporary[0] <= 4 * 4 * whole
    else:
        assert not gathered(construct) and "fusion" not in unwrap  # nothing is computed
        # Whole in float32, the weight would be 4 * whole bytes, and its piece an eighth of that.
        assert max(programs.temporary) < 4 * whole / 2


@pytest.mark.parametrize(("method", "layout"), [("PiSSA", "tensor"), ("LoRAXS", "2d")])
def test_large_weights_are_decomposed_where_they_lie(method, layout, programs):
    model = shard(Small(jax.random.key(0), hidden=1536), LAYOUTS[layout], mesh_of(layout))
    layer, whole = model.up, model.up.weight.size
    with watching() as sizes:
        adapt(layer, wrappers_of(method))
    # The basis of the random subspace, five blocks of 16 vectors, is gathered to be orthonormal:
    # not the weight, of which it is a smaller part the larger that is.
    assert max(gathered(programs.texts[0])) <= 5 * 16 * max(layer.weight.shape) < whole / 16
    assert programs.temporary[0] < 4 * whole / 4
    assert max(sizes) <= whole / 8


def test_decompositions_of_a_stack_cut_along_itself_gather_nothing(programs):
    make = eqx.filter_vmap(lambda key: eqx.nn.Linear(8, 16, key=key))
    stack = make(jax.random.split(jax.random.key(0), 8))
    place = NamedSharding(mesh_of("tensor"), P("model"))
    stack = jax.tree.map(lambda a: jax.device_put(a, place), stack)
    adapted = apply_lora(stack, 4, 4.0, key=jax.random.key(1), wrapper="pissa")
    assert gathered(programs.texts[0]) == []
    assert adapted.lora_A.sharding.is_equivalent_to(place, 3)


def test_the_witnesses_see_a_gathered_weight(programs):
    layer = one_layer("2d")
    everywhere = NamedSharding(mesh_of("2d"), P())

    def gather(layer):
        return jax.lax.with_sharding_constraint(layer.weight, everywhere)

    with watching() as sizes:
        _run.run(gather, layer)
    assert max(gathered(programs.texts[0])) == layer.weight.size
    with watching() as sizes:
        weight = jax.device_put(layer.weight, everywhere)
        merge_lora(layer)
    assert max(sizes) == weight.size
