"""The arrays of an adapter lie on the mesh as the weight does."""

import equinox as eqx
import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

import jno_lora_zoo
from jno.lora import apply_lora, merge_lora, unwrap_lora

MESH = Mesh(np.array(jax.devices()[:8]).reshape(2, 4), ("x", "y"))
EXPECTED = {
    "LoRA": {"lora_A": P(None, "x"), "lora_B": P("y", None)},
    "rsLoRA": {"lora_A": P(None, "x"), "lora_B": P("y", None)},
    "LoRAFA": {"lora_A": P(None, "x"), "lora_B": P("y", None)},
    "DoRA": {"magnitude": P("y"), "lora_A": P(None, "x"), "lora_B": P("y", None)},
    "PiSSA": {"lora_A": P(None, "x"), "lora_B": P("y", None), "initial_A": P(None, "x")},
    "MiLoRA": {"lora_A": P(None, "x"), "lora_B": P("y", None), "initial_B": P("y", None)},
    "LoRAXS": {"lora_A": P(None, "x"), "lora_B": P("y", None), "R": P()},
    "VeRA": {"b": P("y"), "d": P(), "seed": P()},
    "IA3": {"scale": P("y")},
    "LoKr": {"kron_A": P(), "kron_B": P()},
    "OFT": {"Q_blocks": P()},
}


def sharded(layer, spec):
    weight = jax.device_put(layer.weight, NamedSharding(MESH, spec))
    return eqx.tree_at(lambda m: m.weight, layer, weight)


def assert_lies(array, spec):
    assert array.sharding.is_equivalent_to(NamedSharding(MESH, spec), array.ndim)


@pytest.mark.parametrize("method", EXPECTED)
@pytest.mark.parametrize("kind", ["Linear", "Conv"])
def test_fields_take_the_matching_axes(method, kind, getkey):
    layer = (
        eqx.nn.Linear(6, 8, key=getkey())
        if kind == "Linear"
        else eqx.nn.Conv1d(4, 8, 3, key=getkey())
    )
    base = sharded(layer, P("y", "x"))
    wrapper = apply_lora(base, 2, 2.0, key=getkey(), wrapper=getattr(jno_lora_zoo, method + kind))
    for field, spec in EXPECTED[method].items():
        assert_lies(getattr(wrapper, field), spec)
    assert_lies(wrapper.base.weight, P("y", "x"))
    assert_lies(merge_lora(wrapper).weight, P("y", "x"))


def test_a_stack_keeps_its_own_axis(getkey):
    keys = jax.random.split(getkey(), 4)
    stack = sharded(
        eqx.filter_vmap(lambda key: eqx.nn.Linear(6, 8, key=key))(keys), P("y", None, "x")
    )
    wrapper = apply_lora(stack, 2, 2.0, key=getkey(), wrapper="LoRALinear")
    assert_lies(wrapper.lora_A, P("y", None, "x"))
    assert_lies(wrapper.lora_B, P("y", None, None))
    assert_lies(merge_lora(wrapper).weight, P("y", None, "x"))


def test_kernels_cut_in_space_have_uncut_inputs(getkey):
    base = sharded(eqx.nn.Conv1d(4, 8, 4, key=getkey()), P(None, "x", "y"))
    wrapper = apply_lora(base, 2, 2.0, key=getkey(), wrapper="LoRAConv")
    assert_lies(wrapper.lora_A, P())


def test_a_layer_on_one_device_is_left_there(getkey):
    wrapper = apply_lora(eqx.nn.Linear(6, 8, key=getkey()), 2, key=getkey())
    assert len(wrapper.lora_A.sharding.device_set) == 1


@pytest.mark.parametrize("operation", [merge_lora, unwrap_lora])
@pytest.mark.parametrize("method", ["OFT", "LoKr", "PiSSA"])
def test_blocks_that_do_not_divide_an_axis_keep_the_sharding(method, operation, getkey):
    base = sharded(eqx.nn.Linear(6, 8, key=getkey()), P("y", "x"))
    wrapper = apply_lora(base, 3, 2.0, key=getkey(), wrapper=f"{method}Linear")
    assert_lies(operation(wrapper).weight, P("y", "x"))
