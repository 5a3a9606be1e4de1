"""A wrapper's contract: it reads like its layer, tolerates `key=`, unwraps, and keeps its state."""

import copy

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jno.lora import (
    ConvLike,
    LinearLike,
    LoRAWrapper,
    WrapperError,
    apply_lora,
    merge_lora,
    unwrap_lora,
)

from .toys import (
    Block,
    ToyBlock,
    ToyConv,
    ToyLinear,
    ToyScale,
    UserEmbedding,
    same,
    shaken,
)


@pytest.fixture
def linear(getkey):
    return eqx.nn.Linear(3, 2, key=getkey())


@pytest.fixture
def wrapper(linear, getkey):
    return shaken(ToyLinear(linear, 2, 1.0, key=getkey()))


# --- reading through


def test_static_attributes_come_from_the_base(wrapper, getkey):
    assert (wrapper.in_features, wrapper.out_features, wrapper.use_bias) == (3, 2, True)
    conv = ToyConv(eqx.nn.Conv2d(2, 4, (3, 1), stride=2, key=getkey()), 1, 1.0, key=getkey())
    assert (conv.kernel_size, conv.stride, conv.groups) == ((3, 1), (2, 2), 1)


def test_arrays_come_from_the_merged_layer(wrapper):
    assert not jnp.array_equal(wrapper.weight, wrapper.base.weight)
    assert jnp.array_equal(wrapper.weight, wrapper.merge().weight)
    assert jnp.array_equal(wrapper.bias, wrapper.base.bias)


def test_methods_are_those_of_the_merged_layer(getkey):
    wrapper = shaken(ToyBlock(Block(2, key=getkey()), 1, 1.0, key=getkey()))
    assert wrapper.slope == 0.5
    assert jnp.array_equal(wrapper.first_bias(), wrapper.base.up.bias)
    assert jnp.array_equal(wrapper.down.bias, wrapper.base.down.bias + wrapper.shift)


def test_a_model_that_reads_an_embedding_sees_the_adapter(getkey):
    embedding = eqx.nn.Embedding(5, 3, key=getkey())
    wrapper = shaken(UserEmbedding(embedding, 1, 1.0, key=getkey()), by=1.0)
    assert jnp.allclose(wrapper.weight[jnp.array([0, 4])], embedding.weight[jnp.array([0, 4])] + 1)


def test_reading_through_is_differentiable(wrapper):
    grads = eqx.filter_grad(lambda w: jnp.sum(w.weight**2))(wrapper)
    assert jnp.any(grads.lora_A != 0) and jnp.any(grads.lora_B != 0)


def test_own_fields_come_before_those_of_the_base(wrapper):
    assert wrapper.rank == 2 and wrapper.lora_A.shape == (2, 3)


def test_an_attribute_that_neither_has_is_an_attribute_error_naming_both(wrapper):
    with pytest.raises(AttributeError, match=r"'ToyLinear' nor the 'Linear'.*'in_featuers'"):
        _ = wrapper.in_featuers
    assert getattr(wrapper, "in_featuers", None) is None


def test_dunder_names_are_not_handed_through(getkey):
    class Sized(eqx.nn.Linear):
        def __len__(self):
            return 7

        def __array__(self, dtype=None, copy=None):
            return np.zeros(7)

    wrapper = ToyLinear(Sized(3, 2, key=getkey()), 1, 1.0, key=getkey())
    for name in ("__len__", "__array__", "__jax_array__", "__deepcopy__"):
        assert not hasattr(wrapper, name)


def test_a_wrapper_can_be_copied(wrapper):
    assert same(copy.copy(wrapper), wrapper)
    assert same(copy.deepcopy(wrapper), wrapper)


def test_an_uninitialised_field_is_not_satisfied_from_the_base(linear, getkey):
    class Forgetful(ToyLinear):
        weight: jax.Array

        def __init__(self, base, rank, alpha, *, key):
            self.base, self.rank, self.alpha = base, rank, alpha
            self.lora_A = self.lora_B = self.weight * 2

    with pytest.raises(AttributeError, match="'Forgetful' has no attribute 'weight'"):
        Forgetful(linear, 1, 1.0, key=getkey())


def test_before_base_is_set_nothing_is_read_through(linear, getkey):
    class Early(ToyLinear):
        def __init__(self, base, rank, alpha, *, key):
            self.rank = self.in_features

    with pytest.raises(AttributeError, match="'Early' has no attribute 'in_features'"):
        Early(linear, 1, 1.0, key=getkey())


# --- eqx.nn.Shared


def tied(getkey):
    embedding = eqx.nn.Embedding(5, 3, key=getkey())
    linear = eqx.nn.Linear(3, 5, use_bias=False, key=getkey())
    return eqx.nn.Shared(
        (embedding, linear), where=lambda pair: pair[1].weight, get=lambda pair: pair[0].weight
    )


def test_the_source_of_shared_weights_gives_its_adapted_weight(getkey):
    shared = tied(getkey)
    wrapper = shaken(UserEmbedding(shared.pytree[0], 1, 1.0, key=getkey()))
    shared = eqx.tree_at(lambda s: s.pytree[0], shared, wrapper)
    _, linear = shared()
    assert jnp.array_equal(linear.weight, wrapper.base.weight + wrapper.delta)


def test_the_destination_of_shared_weights_hands_the_placeholder_through(getkey):
    shared = tied(getkey)
    placeholder = shared.pytree[1].weight
    wrapper = shaken(ToyLinear(shared.pytree[1], 2, 1.0, key=getkey()))
    assert wrapper.weight is placeholder

    shared = eqx.tree_at(lambda s: s.pytree[1], shared, wrapper)
    embedding, linear = shared()
    assert isinstance(linear, ToyLinear)
    assert jnp.array_equal(linear.base.weight, embedding.weight)
    x = jnp.arange(3.0)
    expected = embedding.weight @ x + linear.lora_B @ (linear.lora_A @ x) / 2
    assert jnp.allclose(linear(x), expected)


def test_both_ends_of_shared_weights_can_be_adapted_by_the_dispatcher(getkey):
    shared = apply_lora(tied(getkey), 2, key=getkey(), wrapper=[UserEmbedding, ToyLinear])
    embedding, linear = shaken(shared)()
    assert isinstance(embedding, UserEmbedding) and isinstance(linear, ToyLinear)
    assert jnp.array_equal(linear.weight, embedding.weight + linear.lora_B @ linear.lora_A)


# --- key=


def test_a_wrapper_that_takes_x_alone_works_where_equinox_passes_key(getkey):
    layers = [eqx.nn.Linear(3, 3, key=getkey()), eqx.nn.Lambda(jax.nn.relu)]
    plain = eqx.nn.Sequential(layers)
    adapted = eqx.nn.Sequential([ToyLinear(layers[0], 1, 1.0, key=getkey()), layers[1]])
    x = jnp.arange(3.0)
    assert jnp.array_equal(adapted(x, key=getkey()), plain(x))


def test_a_wrapper_that_takes_key_receives_it(linear, getkey):
    class Noisy(ToyLinear):
        def __call__(self, x, *, key):
            return ToyLinear.__call__(self, x) + jax.random.normal(key, (2,))

    wrapper, key, x = Noisy(linear, 1, 1.0, key=getkey()), getkey(), jnp.arange(3.0)
    assert jnp.array_equal(wrapper(x, key=key), linear(x) + jax.random.normal(key, (2,)))


def test_key_is_tolerated_through_decorators(linear, getkey):
    class Jitted(ToyLinear):
        @eqx.filter_jit
        def __call__(self, x):
            return self.base(x)

    class Named(ToyLinear):
        @jax.named_scope("named")
        def __call__(self, x):
            return self.base(x)

    x = jnp.arange(3.0)
    for cls in (Jitted, Named):
        wrapper = cls(linear, 1, 1.0, key=getkey())
        assert jnp.allclose(wrapper(x, key=getkey()), linear(x))
        assert jnp.allclose(wrapper(x), linear(x))


def test_key_is_tolerated_by_a_call_that_comes_from_a_mixin(linear, getkey):
    class Forward:
        def __call__(self, x):
            return self.base(x)

    class Mixed(Forward, ToyLinear):
        pass

    x = jnp.arange(3.0)
    wrapper = Mixed(linear, 1, 1.0, key=getkey())
    assert jnp.array_equal(wrapper(x, key=getkey()), linear(x))


def test_other_arguments_are_not_swallowed(wrapper):
    with pytest.raises(TypeError):
        wrapper(jnp.arange(3.0), 1)
    with pytest.raises(TypeError):
        wrapper(jnp.arange(3.0), scale=2)


# --- unwrap


def test_unwrap_is_the_base_itself_by_default(wrapper, linear):
    assert wrapper.unwrap() is wrapper.base
    assert wrapper.unwrap().weight is linear.weight
    assert same(unwrap_lora(wrapper), linear)


def test_unwrap_can_restore_a_base_that_the_constructor_changed(linear, getkey):
    class Residual(ToyScale):
        original: jax.Array

        def __init__(self, base, rank, alpha, *, key):
            ToyScale.__init__(self, base, rank, alpha, key=key)
            self.original = base.weight
            self.base = eqx.tree_at(lambda layer: layer.weight, base, 0 * base.weight)

        def unwrap(self):
            return eqx.tree_at(lambda layer: layer.weight, self.base, self.original)

    wrapper = Residual(linear, 1, 1.0, key=getkey())
    assert not same(wrapper.base, linear)
    assert same(unwrap_lora(wrapper), linear)


# --- state


def test_state_is_every_array_outside_the_base(linear, getkey):
    wrapper = shaken(ToyScale(linear, 1, 1.0, key=getkey()))
    state = wrapper.state()
    assert set(state) == {"gain", "constant"}
    assert state["gain"] is wrapper.gain


def test_state_names_nested_arrays_by_path(linear, getkey):
    assert set(nested(linear, getkey).state()) == {"factors/0", "factors/1/inner"}


def nested(linear, getkey):
    class Nested(LoRAWrapper):
        adapter_fields = ("factors",)
        base: eqx.Module
        factors: list
        activation: object
        rank: int = eqx.field(static=True)
        alpha: float = eqx.field(static=True)

        @classmethod
        def applies_to(cls, leaf):
            return isinstance(leaf, eqx.nn.Linear)

        def __init__(self, base, rank, alpha, *, key):
            self.base, self.rank, self.alpha = base, rank, alpha
            self.factors = [jax.random.normal(key, (rank,)), {"inner": jnp.zeros(2)}]
            self.activation = jnp.tanh

        def __call__(self, x):
            return self.base(x)

        def merge(self):
            return self.base

    return Nested(linear, 2, 3.0, key=getkey())


@pytest.mark.parametrize("make", [ToyLinear, ToyScale])
def test_from_state_restores_every_bit(make, linear, getkey):
    wrapper = shaken(make(linear, 2, 3.0, key=getkey()))
    state = {name: np.asarray(array) for name, array in wrapper.state().items()}
    restored = make.from_state(linear, jax.tree.map(jnp.asarray, state), 2, 3.0)
    assert same(restored, wrapper)
    assert restored.base.weight is linear.weight


def test_from_state_restores_nested_arrays_and_keeps_other_leaves(linear, getkey):
    wrapper = shaken(nested(linear, getkey))
    restored = type(wrapper).from_state(linear, wrapper.state(), 2, 3.0)
    assert same(restored, wrapper)
    assert restored.activation is jnp.tanh


def test_from_state_never_runs_the_initialiser_on_values(linear, getkey):
    runs = []

    class Watched(ToyLinear):
        def __init__(self, base, rank, alpha, *, key):
            runs.append(isinstance(base.weight, jax.core.Tracer))
            jax.debug.callback(lambda _: runs.append("ran"), base.weight)
            ToyLinear.__init__(self, base, rank, alpha, key=key)

    wrapper = Watched(linear, 1, 1.0, key=getkey())
    jax.effects_barrier()
    assert runs == [False, "ran"]
    runs.clear()
    Watched.from_state(linear, wrapper.state(), 1, 1.0)
    jax.effects_barrier()
    assert runs == [True]


def test_a_state_that_lacks_an_array_is_an_error_naming_it(wrapper, linear):
    state = wrapper.state()
    del state["lora_B"]
    with pytest.raises(WrapperError, match=r"(?s)ToyLinear.*lora_B: expected, missing"):
        ToyLinear.from_state(linear, state, 2, 1.0)


def test_a_state_with_an_array_too_many_is_an_error_naming_it(wrapper, linear):
    state = {**wrapper.state(), "magnitude": jnp.ones(2)}
    with pytest.raises(WrapperError, match="magnitude: not a field of ToyLinear"):
        ToyLinear.from_state(linear, state, 2, 1.0)


def test_a_state_of_another_shape_is_an_error_saying_both(wrapper, linear):
    with pytest.raises(WrapperError) as caught:
        ToyLinear.from_state(linear, wrapper.state(), 1, 1.0)
    assert "lora_A: expected shape (1, 3), got (2, 3)" in str(caught.value)
    assert "lora_B: expected shape (2, 1), got (2, 2)" in str(caught.value)


# --- protocols


def test_layers_of_other_libraries_are_recognised_by_their_shape(linear, getkey):
    class Dense(eqx.Module):
        weight: jax.Array
        in_features: int
        out_features: int

        def __call__(self, x):
            return self.weight @ x

    conv = eqx.nn.Conv1d(1, 1, 1, key=getkey())
    assert isinstance(linear, LinearLike) and isinstance(Dense(jnp.ones((1, 1)), 1, 1), LinearLike)
    assert isinstance(conv, ConvLike)
    assert not isinstance(conv, LinearLike) and not isinstance(linear, ConvLike)
    assert not isinstance(jnp.ones(3), LinearLike | ConvLike)


def test_a_layer_that_takes_its_attributes_from_another_is_recognised(linear):
    class Around(eqx.Module):
        inner: eqx.nn.Linear

        def __getattr__(self, name):
            return getattr(self.__dict__["inner"], name)

        def __call__(self, x):
            return self.inner(x)

    assert isinstance(Around(linear), LinearLike) and not isinstance(Around(linear), ConvLike)


def test_a_class_that_inherits_a_protocol_is_asked_for_itself(linear):
    class Mine(LinearLike):
        pass

    assert not isinstance(linear, Mine) and isinstance(Mine(), LinearLike)


def test_a_wrapper_looks_like_the_layer_it_wraps(wrapper):
    assert isinstance(wrapper, LinearLike)
    assert same(merge_lora(wrapper), wrapper.merge())
