"""The rule that picks a convolution's path by its static shapes, and that the paths agree."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from zoo_cases import ADAPTERS, assert_close, build, perturb

from jno_lora_zoo.layers import kernel

LORA, VERA = (next(a for a in ADAPTERS if a.name == name) for name in ("LoRAConv", "VeRAConv"))
OUT = 8


def layer(groups):
    return eqx.nn.Conv1d(4, OUT, 3, padding=1, groups=groups, key=jax.random.key(0))


def loss_of(adapter, groups, rank):
    """The loss of an adapted layer as a function of what trains, and what trains."""
    wrapper = perturb(build(adapter, layer(groups), rank=rank))
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
def test_up_to_half_of_the_outputs_are_narrow(groups, rank, narrow):
    assert kernel.is_narrow(layer(groups), rank) is narrow


@pytest.mark.parametrize("groups", [1, 2])
def test_only_a_wide_adapter_differentiates_the_whole_kernel(groups):
    size = layer(groups).weight.size
    for rank in (OUT // 2 // groups, OUT // 2 // groups + 1):
        loss, arrays = loss_of(LORA, groups, rank)

        def loss_of_factors(A, B, loss=loss, arrays=arrays):
            return loss(eqx.tree_at(lambda w: (w.lora_A, w.lora_B), arrays, (A, B)))

        gradient = jax.grad(loss_of_factors, argnums=(0, 1))
        traced = jax.make_jaxpr(gradient)(arrays.lora_A, arrays.lora_B)
        is_wide = not kernel.is_narrow(layer(groups), rank)
        assert (size in convolutions(traced.jaxpr)) is is_wide


@pytest.mark.parametrize("adapter", [LORA, VERA], ids=lambda a: a.name)
@pytest.mark.parametrize("groups", [1, 2])
def test_both_paths_have_the_same_values_and_gradients(adapter, groups, monkeypatch):
    results = []
    for narrow in (True, False):
        monkeypatch.setattr(kernel, "is_narrow", lambda frame, r, narrow=narrow: narrow)
        loss, arrays = loss_of(adapter, groups, 2)
        results.append(jax.tree.leaves(eqx.filter_value_and_grad(loss)(arrays)))
    for one, other in zip(*results, strict=True):
        assert_close(one, other, 1e-5)
