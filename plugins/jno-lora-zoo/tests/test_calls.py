"""Calls that the kit does not try, derivatives through layers, and what a state restores."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from jax.experimental.jet import jet
from zoo_cases import adapters, assert_close, build, case, perturb
from zoo_cases.layers import matrix_of

import jno_lora_zoo
from jno.lora import lora_trainable_filter
from jno_lora_zoo import _svd


@pytest.mark.parametrize("method", ["LoRA", "DoRA", "OFT"])
def test_whatever_the_layer_takes_the_adapter_and_the_merged_layer_agree_on(method):
    base = eqx.nn.Linear(4, 4, use_bias=False, key=jax.random.key(0))
    wrapper = getattr(jno_lora_zoo, f"{method}Linear")(base, 2, 1.0, key=jax.random.key(1))
    trained = perturb(wrapper)
    merged = trained.merge()
    with jax.numpy_dtype_promotion("standard"):
        for x in (
            jnp.array([1, 2, 3, 4]),
            jnp.array([True, False, True, True]),
            jnp.array([0.1, 0.2, 0.3, 0.4], jnp.bfloat16),
            jnp.arange(16.0).reshape(4, 4) / 7,  # columns
        ):
            assert_close(trained(x), merged(x), 1e-5)
            assert_close(wrapper(x), base(x), 1e-5)


@pytest.mark.parametrize("method", ["PiSSA", "LoRAXS"])
def test_restoring_needs_no_decomposition(method, monkeypatch):
    def refuse(decompose, matrix, *args):
        # Tracing for shapes decomposes no numbers.
        assert isinstance(matrix, jax.core.Tracer), "a decomposition ran"
        return decompose(matrix, *args)

    monkeypatch.setattr(_svd, "run", refuse)
    base, cls = case("Linear", "plain"), getattr(jno_lora_zoo, f"{method}Linear")
    with pytest.raises(AssertionError, match="a decomposition ran"):
        cls(base.layer, 2, 3.0, key=jax.random.key(0))
    shapes = {"lora_A": (2, 6), "lora_B": (5, 2)}
    more = {"R": (2, 2)} if method == "LoRAXS" else {"initial_A": (2, 6), "initial_B": (5, 2)}
    ones = {name: jnp.ones(shape) for name, shape in (shapes | more).items()}
    restored = cls.from_state(base.layer, ones, 2, 3.0)
    # Both factors are as they began, or R is 1: the layer, and B R A = 4 on top of it.
    expected = base.matrix() + (3.0 / 2 * 4 if method == "LoRAXS" else 0)
    assert_close(matrix_of(restored.merge()), expected, 1e-6)


def split(model):
    return eqx.partition(model, lora_trainable_filter(model))


def assert_alike(got, expected, tolerance):
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert_close(one, other, tolerance)


def as_it_is(wrapper):
    return wrapper


def merged(wrapper):
    return wrapper.merge()


@adapters("LoRA", "DoRA", "OFT")
def test_layers_one_after_the_other_have_the_gradients_of_the_law(adapter, base):
    """The input of the second varies with what trains, which not every version of JAX survives."""
    (x,) = base.arguments()
    layers = [perturb(build(adapter, base), seed=seed) for seed in (0, 1)]
    trainable, frozen = eqx.partition(layers, [*map(lora_trainable_filter, layers)])

    def total(trainable, read):
        first, second = map(read, eqx.combine(trainable, frozen))
        h = jnp.tanh(first(x))
        inputs = jnp.resize(h, x.shape)  # a layer has more inputs than outputs
        return jnp.sum(jnp.sin(second(inputs)))

    gradient = jax.jit(jax.grad(total), static_argnums=1)
    assert_alike(gradient(trainable, as_it_is), gradient(trainable, merged), 1e-5)


@adapters("DoRA", "PiSSA", "IA3", "LoKr", conv=("groups_straddled",))
def test_taylor_mode_follows_a_batch_and_can_be_differentiated(adapter, base):
    trainable, frozen = split(perturb(build(adapter, base)))
    (x,) = base.arguments()
    batch = jnp.stack([x, jnp.sin(x)])

    def loss(trainable, read):
        layer = jax.vmap(read(eqx.combine(trainable, frozen)))
        value, (first, second) = jet(
            lambda x: jnp.tanh(layer(x)), (batch,), ((jnp.cos(batch), batch),)
        )
        return jnp.sum(value * first) + jnp.sum(jnp.sin(second))

    compiled = eqx.filter_jit(jax.value_and_grad(loss))
    assert_alike(compiled(trainable, as_it_is), compiled(trainable, merged), 2e-4)
