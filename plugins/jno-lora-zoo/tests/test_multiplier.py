"""The frozen factor of an update beside `alpha`: an array, so that no value compiles anew."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo_cases import (
    ADAPTERS,
    METHODS,
    adapters,
    assert_close,
    build,
    case,
    equal_leaves,
    made,
    perturb,
)

import jno_lora_zoo
from jno.lora import (
    SelectionError,
    WrapperError,
    apply_lora,
    lora_trainable_filter,
    merge_lora,
    partial_lora_trainable_filter,
)
from jno.lora._shared_arrays import put_shared, shared_arrays

SCALED = ("LoRA", "rsLoRA", "LoRAFA", "DoRA", "LoRAXS", "VeRA", "LoKr")
by_method = pytest.mark.parametrize("method", SCALED)


def linear(method):
    (adapter,) = (a for a in ADAPTERS if a.name == f"{method}Linear")
    return adapter, adapter.case("plain", "plain")


@pytest.mark.parametrize("method", [m for m in jno_lora_zoo.METHODS if hasattr(m, "scale_for")])
def test_a_class_knows_its_scale(method):
    ratio = method.scale_for(4, 8.0) / method.scale_for(4, 4.0)
    assert ratio == (1 if method.variant in ("c3a", "miss") else 2)  # which have no scale


@adapters(*SCALED, linear=("plain", "subclass"))
def test_it_multiplies_the_update_as_alpha_does(adapter, base):
    wrapper = perturb(build(adapter, base, alpha=3.0, multiplier=0.5))
    other = perturb(build(adapter, base, alpha=1.5))
    assert wrapper.multiplier.shape == () and wrapper.multiplier.dtype == jnp.float32
    assert_close(wrapper(*base.arguments()), other(*base.arguments()), 1e-5)
    assert_close(wrapper.merge().weight, other.merge().weight, 1e-6)
    update = wrapper.low_rank_update()
    if update is not None:
        A, B = update
        matrix = wrapper.matrix(base.layer)
        assert_close(B @ A, wrapper.law(matrix) - matrix, 1e-5)


@by_method
def test_a_multiplier_is_a_frozen_leaf_and_absent_without_one(method):
    adapter, base = linear(method)
    plain, wrapper = build(adapter, base), build(adapter, base, multiplier=2.0)
    assert len(jax.tree.leaves(wrapper)) == len(jax.tree.leaves(plain)) + 1
    assert "multiplier" not in type(wrapper).adapter_fields
    for select in (lora_trainable_filter, partial_lora_trainable_filter):
        assert select(wrapper).multiplier is False
        assert select(plain).multiplier is None


@by_method
def test_a_state_restores_it(method):
    adapter, base = linear(method)
    wrapper = perturb(build(adapter, base, multiplier=0.25))
    state = wrapper.state()
    assert state.keys() == build(adapter, base).state().keys() | {"multiplier"}
    restored = adapter.cls.from_state(base.layer, state, wrapper.rank, wrapper.alpha)
    assert equal_leaves(restored, wrapper)
    wrong = state | {"multiplier": jnp.ones(2)}
    with pytest.raises(WrapperError, match=r"multiplier: expected shape \(\), got \(2,\)"):
        adapter.cls.from_state(base.layer, wrong, wrapper.rank, wrapper.alpha)


LATER = [
    method.__name__
    for method in jno_lora_zoo.METHODS
    if issubclass(method, jno_lora_zoo.Scaled) and method.__name__ not in SCALED
]


@pytest.mark.parametrize("method", LATER)
def test_the_state_of_every_later_method_restores_it(method):
    cls, layer = getattr(jno_lora_zoo, f"{method}Linear"), case("Linear", "plain").layer
    wrapper = perturb(made(cls, layer, 2, 3.0, key=jax.random.key(0), multiplier=0.25))
    restored = cls.from_state(layer, wrapper.state(), wrapper.rank, wrapper.alpha)
    assert equal_leaves(put_shared(restored, shared_arrays(wrapper)), wrapper)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_arrays_of_half_precision_are_multiplied_in_full(dtype):
    adapter, base = linear("LoRA")
    wrapper = perturb(build(adapter, base, adapter_dtype=dtype, multiplier=1 / 3))
    A, B = (np.asarray(x).astype(np.float64) for x in (wrapper.lora_A, wrapper.lora_B))
    matrix = wrapper.matrix(base.layer)
    assert_close(wrapper.law(matrix) - matrix, wrapper.scaling / 3 * B @ A, 1e-5)


def test_in_a_stack_each_layer_has_one_and_they_may_differ():
    make = eqx.filter_vmap(lambda key: eqx.nn.Linear(5, 5, key=key))
    layer = make(jax.random.split(jax.random.key(1), 3))
    options = {"multiplier": jnp.float32(0.5)}
    stack = apply_lora(layer, 2, key=jax.random.key(2), options=options)
    assert stack.multiplier.tolist() == [0.5] * 3
    stack = eqx.tree_at(lambda w: w.multiplier, perturb(stack), jnp.asarray([0.0, 1.0, 2.0]))
    updates = merge_lora(stack).weight - layer.weight
    whole = jnp.einsum("nor,nri->noi", stack.lora_B, stack.lora_A) * stack.scaling
    assert_close(updates, whole * jnp.asarray([0.0, 1.0, 2.0])[:, None, None], 1e-5)


@by_method
def test_a_map_over_multipliers_is_each_in_turn(method):
    adapter, base = linear(method)
    wrapper = perturb(build(adapter, base, multiplier=1.0))
    values = jnp.asarray([0.0, 0.5, 2.0])

    def output(value):
        return eqx.tree_at(lambda w: w.multiplier, wrapper, value)(*base.arguments())

    for index, result in enumerate(jax.vmap(output)(values)):
        assert_close(result, output(values[index]), 1e-5)


def test_one_array_for_many_layers_is_a_buffer_of_its_own_in_each():
    layers = [eqx.nn.Linear(4, 3, key=jax.random.key(k)) for k in range(3)]
    layers.append(eqx.nn.Linear(300, 300, key=jax.random.key(3)))  # built alone
    model = apply_lora(layers, 2, key=jax.random.key(4), options={"multiplier": jnp.float32(0.5)})
    trained = eqx.filter(model, lambda leaf: leaf is not None)
    multipliers = [adapter.multiplier for adapter in trained]
    assert len({array.unsafe_buffer_pointer() for array in multipliers}) == 4
    jax.jit(lambda xs: [x + 1 for x in xs], donate_argnums=0)(multipliers)


def test_a_multiplier_is_one_number_of_a_method_with_a_scale(getkey):
    layer = eqx.nn.Linear(4, 3, key=getkey())
    with pytest.raises(WrapperError, match=r"one real number, but is \[1.0, 2.0\]"):
        apply_lora(layer, 2, key=getkey(), options={"multiplier": [1.0, 2.0]})
    with pytest.raises(WrapperError, match=r"one real number, but is '0.5'"):
        apply_lora(layer, 2, key=getkey(), options={"multiplier": "0.5"})
    for method in set(METHODS) - set(SCALED):
        cls = getattr(jno_lora_zoo, f"{method}Linear")
        with pytest.raises(SelectionError, match="has no option 'multiplier'"):
            apply_lora(layer, 2, key=getkey(), wrapper=cls, options={"multiplier": 0.5})


@pytest.mark.parametrize("method", ["C3A", "MiSS"])
def test_methods_without_a_scale_ignore_alpha(method, getkey):
    layer = eqx.nn.Linear(4, 3, key=getkey())
    adapter = getattr(jno_lora_zoo, f"{method}Linear")(layer, 2, 7.0, key=getkey())
    assert adapter.scaling == 1.0
