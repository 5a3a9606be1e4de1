"""Where the arrays of an adapter lie: when it is made, loaded, merged and dropped."""

import contextlib
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
from tests.pairs import ALL, pairwise

import jno_lora_zoo
from jno.lora import WrapperError, apply_lora, merge_lora, unwrap_lora
from jno.lora._sets.set import LayerForm, LooseAdapter, built_around
from jno_lora_zoo import sharded_over

from .layouts import (
    ALL_METHODS,
    FIELDS,
    LAYOUTS,
    Small,
    Transformer,
    adapted,
    adapted_transformer,
    adapters_in,
    assert_close,
    assert_same_sharding,
    base,
    mesh_of,
    perturbed,
    shard,
    wrappers_of,
)

# The conformance kit shards every adapter.
METHODS = ALL_METHODS if ALL else ["LoRA", "DoRA", "PiSSA"]
OF_TRANSFORMER = list(LAYOUTS) if ALL else ["2d"]


def expected_spec(wrapper, field):
    """The matching axes of the base's weight: `in` of a kernel is the axis of its inputs."""
    ndim = type(wrapper).stack_ndim(wrapper.base)
    axes = sharded_over(wrapper.base.weight)
    outputs, inputs = axes[ndim : ndim + 2]
    if isinstance(wrapper.base, eqx.nn.Embedding):
        outputs, inputs = inputs, outputs
    kinds = {"out": outputs, "in": inputs, None: None}
    return P(*axes[:ndim], *(kinds[axis] for axis in FIELDS.get(field, ())))


def assert_lies_as_its_base(wrapper, mesh):
    for field, array in wrapper.state().items():
        spec = expected_spec(wrapper, field)
        lies = array.sharding.is_equivalent_to(NamedSharding(mesh, spec), array.ndim)
        assert lies, f"{field}: {array.sharding}, expected {spec}"


@pytest.mark.parametrize(
    ("method", "layout"),
    [
        *pairwise(itertools.product(METHODS, ["tensor", "2d"])),
        *(("LoRA", "data"), ("DoRA", "fsdp")),
    ],
)
def test_arrays_take_the_matching_axes(method, layout):
    plain, model = base(Small, layout), adapted(method, layout)
    adapters = adapters_in(model)
    assert list(adapters) == ["conv", "up", "down"]
    for wrapper in adapters.values():
        assert_lies_as_its_base(wrapper, mesh_of(layout))
    assert_same_sharding([w.base for w in adapters.values()], [plain.conv, plain.up, plain.down])


@pytest.mark.parametrize("layout", OF_TRANSFORMER)
def test_so_do_those_of_embeddings_attention_and_stacks(layout):
    plain, model = base(Transformer, layout), adapted_transformer(layout)
    adapters = adapters_in(model)
    assert {"embedding", "attention/output_proj", "blocks/up", "blocks/down"} <= adapters.keys()
    for wrapper in adapters.values():
        assert_lies_as_its_base(wrapper, mesh_of(layout))
    assert_same_sharding(merge_lora(model), plain)
    assert_same_sharding(unwrap_lora(model), plain)
    for path, layer in [("embedding", plain.embedding), ("blocks/up", plain.blocks.up)]:
        restored = load(adapters[path], layer)
        assert_same_sharding(restored, adapters[path], f"{path}: ")
        assert_close(restored, adapters[path], rtol=0)


def test_frozen_arrays_are_the_same_objects_on_a_mesh_and_on_a_device():
    plain, model = base(Small, "2d"), adapted("DoRA", "2d")
    assert model.up.base.weight is plain.up.weight
    assert model.conv.base.bias is plain.conv.bias
    assert unwrap_lora(model).up.weight is plain.up.weight
    assert adapted("PiSSA", "2d").up.base.bias is plain.up.bias
    wrapper, layer = adapted("LoRA", "2d").up, base(Small, None).up
    state = jax.tree.map(lambda array: jnp.asarray(np.asarray(array)), wrapper.state())
    restored = restore(wrapper, layer, state)
    assert restored.lora_A is state["lora_A"] and restored.base.weight is layer.weight


# The tests of gathers check that merged layers stay in place on the other meshes.
@pytest.mark.parametrize(("method", "layout"), [*((m, "2d") for m in METHODS), ("LoRA", "data")])
def test_merged_unwrapped_and_loaded_layers_lie_where_the_layers_were(method, layout):
    plain, model = base(Small, layout), perturbed(adapted(method, layout))
    assert_close(adapted(method, layout), adapted(method, None), rtol=1e-6, atol=1e-6)
    merged, unwrapped = merge_lora(model), unwrap_lora(model)
    assert_same_sharding(merged, plain)
    assert_same_sharding(unwrapped, plain)
    expected = eqx.filter_jit(merge_lora)(perturbed(adapted(method, None)))
    assert_close(merged, expected, rtol=1e-5, atol=1e-5)
    assert_close(unwrapped, plain, rtol=1e-5, atol=1e-6)
    for path, wrapper in adapters_in(model).items():
        restored = load(wrapper, getattr(plain, path))
        assert_same_sharding(restored, wrapper, f"{path}: ")
        assert_close(restored.state(), wrapper.state(), rtol=0)
        assert_close(restored.base, wrapper.base, rtol=1e-6, atol=1e-6)


def load(wrapper, plain):
    state = {name: np.asarray(array) for name, array in wrapper.state().items()}
    return restore(wrapper, plain, state)


def restore(wrapper, plain, state):
    form = LayerForm("", ())
    loose = LooseAdapter(state, type(wrapper), wrapper.rank, wrapper.alpha, form)
    return built_around(plain, loose)


@pytest.mark.parametrize(("method", "is_set"), [("DoRA", False), ("PiSSA", True), ("LoKr", True)])
def test_meshes_with_explicit_axes(method, is_set):
    # `jax.make_mesh` of newer versions of JAX makes such axes by default.
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
    plain = shard(base(Small, None), LAYOUTS["2d"], mesh)
    with jax.set_mesh(mesh) if is_set else contextlib.nullcontext():
        model = apply_lora(plain, 4, 8.0, key=jax.random.key(1), wrapper=wrappers_of(method))
        layers = [merge_lora(model), unwrap_lora(model)]
        loaded = load(model.up, plain.up)
    for wrapper in [*adapters_in(model).values(), loaded]:
        assert_lies_as_its_base(wrapper, mesh)
        assert {array.sharding.mesh for array in wrapper.state().values()} == {mesh}
    if method != "PiSSA":  # whose base is another
        assert model.up.base.weight is plain.up.weight
    for layer in layers:
        assert_same_sharding(layer, plain)
        assert layer.up.weight.sharding.mesh == mesh


def test_arrays_that_lie_elsewhere_do_not_matter():
    """A bias, and a key, that were committed to one device."""
    layer = base(Small, "2d").up
    one = jax.devices()[3]
    layer = eqx.tree_at(lambda m: m.bias, layer, jax.device_put(jnp.zeros(64), one))
    key = jax.device_put(jax.random.key(1), one)
    wrapper = apply_lora(layer, 4, 8.0, key=key, wrapper=jno_lora_zoo.DoRALinear)
    assert_lies_as_its_base(wrapper, mesh_of("2d"))
    assert wrapper.base.bias is layer.bias
    assert merge_lora(wrapper).bias is layer.bias
    # A layer of one device stays there.
    there = jax.device_put(base(Small, None).up, jax.devices()[1])
    for place in (NamedSharding(mesh_of("data"), P()), one):
        adapted = apply_lora(there, 2, key=jax.device_put(jax.random.key(1), place))
        assert {d for x in jax.tree.leaves(adapted) for d in x.devices()} == {jax.devices()[1]}


class Misplaced(jno_lora_zoo.LoRALinear):
    def partition_specs(self):
        return {"lora_A": P("nope")}


def test_a_bad_spec_is_an_error_that_names_the_layer(getkey):
    mesh = Mesh(np.array(jax.devices()), ("data",))
    layer = eqx.nn.Linear(8, 8, key=getkey())
    layer = jax.device_put(layer, NamedSharding(mesh, P()))
    with pytest.raises(WrapperError, match=r"(?s)Misplaced.*'head'.*nope"):
        apply_lora({"head": layer}, 2, key=getkey(), wrapper=Misplaced)
