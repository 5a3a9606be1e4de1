"""The frozen factor of an update beside `alpha`: an array, so that no value compiles anew."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from zoo_cases import (
    ALL_METHODS,
    Adapter,
    adapters,
    assert_close,
    build,
    case,
    equal_leaves,
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

SCALED = [
    name for name in ALL_METHODS if issubclass(getattr(jno_lora_zoo, name), jno_lora_zoo.Scaled)
]
# Which have no scale beside the multiplier.
UNSCALED = ("C3A", "MiSS")


@adapters(*SCALED)
def test_it_multiplies_the_update_as_alpha_does(adapter, base):
    wrapper = perturb(build(adapter, base, alpha=3.0, multiplier=0.5))
    assert wrapper.multiplier.shape == () and wrapper.multiplier.dtype == jnp.float32
    merged, expected = wrapper.merge(), perturb(build(adapter, base, alpha=1.5)).merge().weight
    if adapter.method in UNSCALED:
        expected = (base.layer.weight + expected) / 2
    assert_close(merged.weight, expected, 2e-6)
    assert_close(wrapper(*base.arguments()), merged(*base.arguments()), 2e-5)
    form = wrapper.low_rank_form()
    if form is not None:
        matrix = wrapper.matrix(base.layer)
        gain = 1 if form.gain is None else form.gain[:, None]
        assert_close(gain * (matrix + form.B @ form.A), wrapper.law(matrix), 1e-5)


@pytest.mark.parametrize("method", SCALED)
def test_it_is_a_frozen_leaf_that_a_state_restores_and_absent_without_one(method):
    adapter, base = Adapter(method, "Linear"), case("Linear", "plain")
    plain, wrapper = build(adapter, base), perturb(build(adapter, base, multiplier=0.25))
    assert len(jax.tree.leaves(wrapper)) == len(jax.tree.leaves(plain)) + 1
    assert "multiplier" not in type(wrapper).adapter_fields
    for select in (lora_trainable_filter, partial_lora_trainable_filter):
        assert select(wrapper).multiplier is False
        assert select(plain).multiplier is None
    state = wrapper.state()
    assert state.keys() == plain.state().keys() | {"multiplier"}
    restored = adapter.cls.from_state(base.layer, state, wrapper.rank, wrapper.alpha)
    assert equal_leaves(put_shared(restored, shared_arrays(wrapper)), wrapper)
    wrong = state | {"multiplier": jnp.ones(2)}
    with pytest.raises(WrapperError, match=r"multiplier: expected shape \(\), got \(2,\)"):
        adapter.cls.from_state(base.layer, wrong, wrapper.rank, wrapper.alpha)
    ratio = adapter.cls.scale_for(4, 8.0) / adapter.cls.scale_for(4, 4.0)
    assert ratio == (1 if method in UNSCALED else 2)


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


def test_one_array_for_many_layers_is_a_buffer_of_its_own_in_each():
    layers = [eqx.nn.Linear(4, 3, key=jax.random.key(k)) for k in range(3)]
    layers.append(eqx.nn.Linear(300, 300, key=jax.random.key(3)))  # built alone
    model = apply_lora(layers, 2, key=jax.random.key(4), options={"multiplier": jnp.float32(0.5)})
    multipliers = [adapter.multiplier for adapter in model]
    assert len({array.unsafe_buffer_pointer() for array in multipliers}) == 4
    jax.jit(lambda xs: [x + 1 for x in xs], donate_argnums=0)(multipliers)


def test_a_multiplier_is_one_number_of_a_method_with_a_scale(getkey):
    layer = eqx.nn.Linear(4, 3, key=getkey())
    for value in ([1.0, 2.0], "0.5"):
        with pytest.raises(WrapperError, match=r"one real number, but is"):
            apply_lora(layer, 2, key=getkey(), options={"multiplier": value})
    for wrapper in ("IA3Linear", "PiSSALinear"):
        with pytest.raises(SelectionError, match="has no option 'multiplier'"):
            apply_lora(layer, 2, key=getkey(), wrapper=wrapper, options={"multiplier": 0.5})
