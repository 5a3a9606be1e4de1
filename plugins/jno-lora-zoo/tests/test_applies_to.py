"""Which layers the adapters claim: all that they can adapt, nothing else, and without raising."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo_cases import ADAPTERS, CONVS, LINEARS, build, case, each

from jno_lora_zoo import ConvLayer

KEY = jax.random.key(0)


class Layer(eqx.Module):
    """Any layer that says of itself what it is told to say."""

    weight: Any
    in_features: Any = 6
    out_features: Any = 5

    def __call__(self, x):
        return x


class Kernel(eqx.Module):
    """Any convolution that says of itself what it is told to say."""

    weight: Any
    in_channels: Any = 3
    out_channels: Any = 4
    kernel_size: Any = (5, 2)
    groups: Any = 1

    def __call__(self, x):
        return x


class NoKernelSize(eqx.Module):
    weight: Any
    in_channels: int = 3
    out_channels: int = 4

    def __call__(self, x):
        return x


class DuckTranspose(Kernel):
    output_padding: Any = (0, 0)


class NotBuiltYet(eqx.Module):
    in_features: int = 6
    out_features: int = 5
    in_channels: int = 6
    out_channels: int = 5

    @property
    def weight(self):
        raise RuntimeError("call `build` first")

    def __call__(self, x):
        return x


def f32(*shape):
    return jnp.ones(shape)


def tied():
    linear = eqx.nn.Linear(6, 5, key=KEY)
    shared = eqx.nn.Shared((linear, linear), lambda p: p[1].weight, lambda p: p[0].weight)
    return shared.pytree[1]


REFUSED = {
    "array": lambda: f32(5, 6),
    "numpy array": lambda: np.ones((5, 6)),
    "none": lambda: None,
    "int": lambda: 3,
    "string": lambda: "Linear",
    "function": lambda: jnp.tanh,
    "list": lambda: [eqx.nn.Linear(6, 5, key=KEY)],
    "class": lambda: eqx.nn.Linear,
    "convolution class": lambda: eqx.nn.Conv2d,
    "placeholder of Shared": tied,
    "ConvTranspose1d": lambda: eqx.nn.ConvTranspose1d(3, 4, 2, key=KEY),
    "ConvTranspose2d": lambda: eqx.nn.ConvTranspose2d(4, 4, 2, key=KEY),
    "ConvTranspose3d": lambda: eqx.nn.ConvTranspose3d(3, 4, 2, key=KEY),
    "generic ConvTranspose": lambda: eqx.nn.ConvTranspose(1, 4, 4, 2, key=KEY),
    "LayerNorm": lambda: eqx.nn.LayerNorm(6),
    "RMSNorm": lambda: eqx.nn.RMSNorm((5, 6)),
    "GroupNorm": lambda: eqx.nn.GroupNorm(2, 6),
    "Embedding": lambda: eqx.nn.Embedding(5, 6, key=KEY),
    "MLP": lambda: eqx.nn.MLP(3, 3, 4, 1, key=KEY),
    "MultiheadAttention": lambda: eqx.nn.MultiheadAttention(2, 4, key=KEY),
    "GRUCell": lambda: eqx.nn.GRUCell(3, 4, key=KEY),
    "PReLU": lambda: eqx.nn.PReLU(),
    "Sequential": lambda: eqx.nn.Sequential([eqx.nn.Linear(6, 5, key=KEY)]),
    "weight of (in, out)": lambda: Layer(f32(6, 5)),
    "weight of another size": lambda: Layer(f32(5, 7)),
    "weight of one axis": lambda: Layer(f32(6)),
    "weight of no axes": lambda: Layer(f32()),
    "no weight": lambda: Layer(None),
    "weight that is a string": lambda: Layer("weight"),
    "weight that is a list": lambda: Layer([[1.0]], 1, 1),
    "complex weight": lambda: Layer(jnp.ones((5, 6), jnp.complex64)),
    "integer weight": lambda: Layer(jnp.ones((5, 6), jnp.int8)),
    "weight without inputs": lambda: Layer(f32(5, 0), 0, 5),
    "features that are tuples": lambda: Layer(f32(5, 6), (6,), (5,)),
    "features that are None": lambda: Layer(f32(5, 6), None, None),
    "features that are arrays": lambda: Layer(f32(5, 6), np.array([6, 6]), np.array([5, 5])),
    "channel-last kernel": lambda: Kernel(f32(5, 2, 3, 4)),
    "kernel of (in, out, ...)": lambda: Kernel(f32(3, 4, 5, 2)),
    "kernel of another size": lambda: Kernel(f32(4, 3, 5, 3)),
    "spectral weight": lambda: Kernel(jnp.ones((4, 3, 5, 2), jnp.complex64)),
    "integer kernel": lambda: Kernel(jnp.ones((4, 3, 5, 2), jnp.int32)),
    "kernel that is None": lambda: Kernel(None),
    "kernel of no axes": lambda: Kernel(f32()),
    "ungrouped kernel of a grouped layer": lambda: Kernel(f32(4, 4, 5, 2), 4, groups=2),
    "groups that are a string": lambda: Kernel(f32(4, 3, 5, 2), groups="depthwise"),
    "kernel sizes that are None": lambda: Kernel(f32(4, 3, 5, 2), kernel_size=None),
    "channels that are tuples": lambda: Kernel(f32(4, 3, 5, 2), (3,), (4,)),
    "channels that are arrays": lambda: Kernel(f32(4, 3, 5, 2), np.array([3, 3]), np.array([4])),
    "spectral layer without kernel sizes": lambda: NoKernelSize(f32(4, 3, 5, 2)),
    "duck-typed transposed kernel": lambda: DuckTranspose(f32(4, 3, 5, 2)),
    "weight that raises": NotBuiltYet,
}


@pytest.mark.parametrize("make", REFUSED.values(), ids=list(REFUSED))
def test_applies_to_refuses_other_leaves_without_raising(make):
    leaf = make()
    assert {a.name: a.cls.applies_to(leaf) for a in ADAPTERS} == {a.name: False for a in ADAPTERS}


LAYERS = [("Linear", name) for name in LINEARS] + [("Conv", name) for name in CONVS]


@pytest.mark.parametrize(("kind", "name"), LAYERS)
def test_a_layer_is_claimed_by_the_adapters_of_its_kind_only(kind, name):
    layer = case(kind, name).layer
    claims = {a.name: a.cls.applies_to(layer) for a in ADAPTERS}
    assert claims == {a.name: a.kind == kind for a in ADAPTERS}


CLAIMED = {
    "Linear": {
        "bfloat16": lambda: eqx.nn.Linear(6, 5, dtype=jnp.bfloat16, key=KEY),
        "numpy": lambda: Layer(np.ones((5, 6), np.float32)),
        "stacked": lambda: Layer(f32(3, 5, 6)),
    },
    "Conv": {
        "float16": lambda: eqx.nn.Conv1d(3, 4, 2, dtype=jnp.float16, key=KEY),
        "numpy": lambda: Kernel(np.ones((4, 3, 5, 2), np.float32)),
        "stacked": lambda: Kernel(f32(2, 4, 3, 5, 2)),
        "grouped": lambda: Kernel(f32(4, 2, 5, 2), 4, groups=2),
        "one kernel size": lambda: Kernel(f32(4, 3, 5), kernel_size=5),
        "list of kernel sizes": lambda: Kernel(f32(4, 3, 5, 2), kernel_size=[5, 2]),
    },
}


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, layers in CLAIMED.items() for name in layers]
)
def test_other_forms_of_the_same_layers_are_claimed(kind, name):
    layer = CLAIMED[kind][name]()
    claims = {a.name: a.cls.applies_to(layer) for a in ADAPTERS}
    assert claims == {a.name: a.kind == kind for a in ADAPTERS}
    assert {a.cls.stack_ndim(layer) for a in ADAPTERS if a.kind == kind} == {name == "stacked"}


@each()
def test_no_adapter_claims_a_wrapped_layer(adapter):
    wrapper = build(adapter, case(adapter.kind, "plain"))
    assert not any(other.cls.applies_to(wrapper) for other in ADAPTERS)


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (eqx.nn.ConvTranspose1d(3, 4, 2, key=KEY), 'adapted on request: `wrapper="LoRAConvTran'),
        (DuckTranspose(f32(4, 3, 5, 2)), "looks like a transposed convolution but is not an"),
        (NoKernelSize(f32(4, 3, 5, 2)), "without kernel_size nothing says which axes"),
        (Kernel(f32(4, 3, 0)), "its kernel (4, 3, 0) is empty"),
        (Kernel(f32(4, 3, 5)), "groups, *kernel_size) = (4, 3, 5, 2)"),
    ],
    ids=["transposed", "duck-typed", "undeclared", "empty", "other sizes"],
)
def test_a_kernel_that_does_not_fit_is_explained(layer, said):
    assert said in ConvLayer.misfit(layer)
