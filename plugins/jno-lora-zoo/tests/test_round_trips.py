"""An adapter can be taken out, and can be put back from its state without its initialiser."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from zoo_cases import adapters, assert_close, build, case, cast_floats, each, equal_leaves, perturb
from zoo_cases.layers import matrix_of

from jno_lora_zoo import _svd

# The kit tries plain layers.
LAYERS = {"linear": ("scalar_input", "duck", "subclass"), "conv": ("subclass", "duck")}
# The arrays of a checkpoint, by the names that users know.
STATE = {
    "LoRA": {"lora_A", "lora_B"},
    "rsLoRA": {"lora_A", "lora_B"},
    "LoRAFA": {"lora_A", "lora_B"},
    "DoRA": {"magnitude", "lora_A", "lora_B"},
    "PiSSA": {"lora_A", "lora_B", "initial_A", "initial_B"},
    "MiLoRA": {"lora_A", "lora_B", "initial_A", "initial_B"},
    "LoRAXS": {"lora_A", "lora_B", "R"},
    "VeRA": {"b", "d", "seed"},
    "IA3": {"scale"},
    "LoKr": {"kron_A", "kron_B"},
    "OFT": {"Q_blocks"},
}


@pytest.fixture
def no_decomposition(monkeypatch):
    """Any singular value decomposition of numbers is an error; tracing one for shapes is not."""

    def refuse(decompose, matrix, *args):
        assert isinstance(matrix, jax.core.Tracer), "a decomposition ran"
        return decompose(matrix, *args)

    monkeypatch.setattr(_svd, "call_compiled", refuse)


@adapters(**LAYERS)
def test_unwrap_gives_the_original_layer(adapter, base):
    layer = perturb(build(adapter, base)).unwrap()
    if adapter.method in ("PiSSA", "MiLoRA"):
        assert jax.tree.structure(layer) == jax.tree.structure(base.layer)
        assert layer.weight.dtype == base.layer.weight.dtype
        assert_close(matrix_of(layer), base.matrix(), 1e-6)
    else:
        assert equal_leaves(layer, base.layer)


@each()
def test_state_holds_the_adapter_and_nothing_of_the_layer(adapter):
    wrapper = build(adapter, case(adapter.kind, "plain"))
    state = wrapper.state()
    assert state.keys() == STATE[adapter.method]
    assert all(state[name] is getattr(wrapper, name) for name in state)


def assert_restores_exactly(adapter, base):
    wrapper = perturb(build(adapter, base))
    state = {name: jnp.copy(x) for name, x in reversed(wrapper.state().items())}
    restored = adapter.cls.from_state(base.layer, state, base.rank, 3.0)
    assert (restored.rank, restored.alpha) == (wrapper.rank, wrapper.alpha)
    assert equal_leaves(restored, wrapper)
    inputs = base.arguments(base.layer.weight.dtype)
    assert equal_leaves(restored(*inputs), wrapper(*inputs))


@adapters(**LAYERS)
def test_the_state_restores_the_adapter_exactly(adapter, base):
    assert_restores_exactly(adapter, base)


@adapters()
def test_the_state_restores_the_adapter_of_a_bfloat16_layer_exactly(adapter, base):
    assert_restores_exactly(
        adapter, dataclasses.replace(base, layer=cast_floats(base.layer, jnp.bfloat16))
    )


@adapters("PiSSA", "MiLoRA", "LoRAXS")
def test_restoring_needs_no_decomposition(adapter, base, no_decomposition):
    with pytest.raises(AssertionError, match="a decomposition ran"):
        build(adapter, base)
    state = {
        "LoRAXS": {"lora_A": (2, 6), "lora_B": (5, 2), "R": (2, 2)},
    }.get(
        adapter.method,
        {"lora_A": (2, 6), "lora_B": (5, 2), "initial_A": (2, 6), "initial_B": (5, 2)},
    )
    ones = {name: jnp.ones(shape) for name, shape in state.items()}
    restored = adapter.cls.from_state(base.layer, ones, 2, 3.0)
    # Both factors are as they began, or R is 1: the layer, and B R A = 4 on top of it.
    expected = base.matrix() + (3.0 / 2 * 4 if adapter.method == "LoRAXS" else 0)
    assert_close(matrix_of(restored.merge()), expected, 1e-6)
