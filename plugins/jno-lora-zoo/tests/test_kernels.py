"""Convolutions: the rule that picks a path by static shapes, that the paths agree, and sharding."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from zoo_cases import Adapter, assert_close, build, perturb

from jno.lora import apply_lora
from jno_lora_zoo import RoAdConv
from jno_lora_zoo.layers import kernel

OUT = 8


def layer(groups):
    return eqx.nn.Conv1d(4, OUT, 3, padding=1, groups=groups, key=jax.random.key(0))


def loss_of(method, groups, rank):
    """The loss of an adapted layer as a function of what trains, and what trains."""
    wrapper = perturb(build(Adapter(method, "Conv"), layer(groups), rank=rank))
    arrays, rest = eqx.partition(wrapper, eqx.is_array)
    x = jax.random.normal(jax.random.key(1), (4, 16))

    def loss(arrays):
        return jnp.sum(jnp.sin(eqx.combine(arrays, rest)(x)))

    return loss, arrays


def convolutions(jaxpr):
    """The sizes of the results of all convolutions in a traced function."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            found.append(math.prod(equation.outvars[0].aval.shape))
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    found += convolutions(inner)
    return found


@pytest.mark.parametrize(
    ("groups", "rank", "narrow"),
    [(1, 1, True), (1, 4, True), (1, 5, False), (2, 2, True), (2, 3, False), (4, 1, True)],
)
def test_up_to_half_of_the_outputs_are_narrow_and_differentiate_no_whole_kernel(
    groups, rank, narrow
):
    assert kernel.is_narrow(layer(groups), rank) is narrow
    loss, arrays = loss_of("LoRA", groups, rank)

    def loss_of_factors(A, B):
        return loss(eqx.tree_at(lambda w: (w.lora_A, w.lora_B), arrays, (A, B)))

    gradient = jax.grad(loss_of_factors, argnums=(0, 1))
    traced = jax.make_jaxpr(gradient)(arrays.lora_A, arrays.lora_B)
    assert (layer(groups).weight.size not in convolutions(traced.jaxpr)) is narrow


@pytest.mark.parametrize(("method", "groups"), [("LoRA", 2), ("VeRA", 1)])
def test_both_paths_have_the_same_values_and_gradients(method, groups, monkeypatch):
    results = []
    for narrow in (True, False):
        monkeypatch.setattr(kernel, "is_narrow", lambda frame, r, narrow=narrow: narrow)
        loss, arrays = loss_of(method, groups, 2)
        results.append(jax.tree.leaves(eqx.filter_value_and_grad(loss)(arrays)))
    for one, other in zip(*results, strict=True):
        assert_close(one, other, 1e-5)


def test_pairs_within_a_group_are_rotated_after_the_convolution():
    x = jax.random.normal(jax.random.key(1), (4, 6))
    for size, fast in ((4, True), (2, True), (8, False)):
        wrapper = perturb(RoAdConv(layer(2), 2, 1.0, key=jax.random.key(2), group_size=size))
        assert wrapper.has_fast_path() == fast
        assert_close(wrapper(x), wrapper.merge()(x), 1e-5)


def test_kernels_cut_in_space_have_uncut_inputs(getkey):
    mesh = Mesh(np.array(jax.devices()[:8]).reshape(2, 4), ("x", "y"))
    layer = eqx.nn.Conv1d(4, 8, 4, key=getkey())
    for spec, expected in ((P(None, "x", "y"), P()), (P("y", "x"), P(None, "x"))):
        weight = jax.device_put(layer.weight, NamedSharding(mesh, spec))
        base = eqx.tree_at(lambda m: m.weight, layer, weight)
        A = apply_lora(base, 2, 2.0, key=getkey(), wrapper="LoRAConv").lora_A
        assert A.sharding.is_equivalent_to(NamedSharding(mesh, expected), A.ndim)
