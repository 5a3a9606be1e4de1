"""Adapters under JAX's and Equinox's transformations, and the keys that they accept."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from zoo_cases import adapters, assert_close, build, case, each, equal_leaves, perturb


@adapters(linear=("plain", "scalar_input"), conv=("plain", "groups"))
def test_vmap_over_inputs_is_a_loop(adapter, base):
    wrapper = perturb(build(adapter, base))
    (x,) = base.arguments()
    batch = jnp.stack([x, 2 * x, -x])
    expected = np.stack([np.asarray(wrapper(one)) for one in batch])
    assert_close(jax.vmap(wrapper)(batch), expected, 1e-5)


@adapters(linear=("plain", "duck"), conv=("plain", "duck"))
def test_eval_shape_of_the_constructor_knows_every_array(adapter, base):
    abstract = eqx.filter_eval_shape(lambda layer: build(adapter, layer, 3.0, 2), base.layer)
    concrete = build(adapter, base)
    assert jax.tree.structure(abstract) == jax.tree.structure(concrete)
    for one, other in zip(jax.tree.leaves(abstract), jax.tree.leaves(concrete), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)


@each()
def test_the_constructor_can_be_mapped_over_keys(adapter):
    base = case(adapter.kind, "plain")
    keys = jax.random.split(jax.random.key(4), 3)

    def make(key):
        return adapter.cls(base.layer, 2, 3.0, key=key)

    ensemble = eqx.filter_vmap(make)(keys)
    for k in range(3):
        member = jax.tree.map(lambda x, k=k: x[k], ensemble)
        one = make(keys[k])
        assert jax.tree.structure(member) == jax.tree.structure(one)
        assert_close(member(*base.arguments()), one(*base.arguments()), 1e-5)
        names = [f for f in ("lora_A", "kron_A", "seed") if f in vars(one)]
        if adapter.method not in ("PiSSA", "MiLoRA", "LoRAXS"):  # up to signs
            for name in names:
                assert np.array_equal(getattr(member, name), getattr(one, name))


@each()
def test_checkpointing_changes_no_gradient(adapter):
    base = case(adapter.kind, "plain")
    wrapper = perturb(build(adapter, base))
    (x,) = base.arguments()

    def loss(x, f):
        return jnp.sum(jnp.sin(f(x)))

    plain = jax.grad(loss)(x, wrapper)
    assert_close(jax.grad(loss)(x, eqx.filter_checkpoint(wrapper)), plain, 1e-5)


@each()
def test_every_buffer_can_be_donated_and_again(adapter):
    base = case(adapter.kind, "plain")
    wrapper = build(adapter, jax.tree.map(jnp.copy, base.layer))
    expected = np.asarray(wrapper(*base.arguments()))

    @eqx.filter_jit(donate="all")
    def step(w):
        return jax.tree.map(lambda a: a * 1 if jnp.issubdtype(a.dtype, jnp.floating) else a, w)

    leaves = jax.tree.leaves(wrapper)
    wrapper = step(step(wrapper))
    assert sum(leaf.is_deleted() for leaf in leaves) == len(leaves)
    assert_close(wrapper(*base.arguments()), expected, 1e-6)


@each()
def test_typed_and_raw_keys_are_the_same_and_neither_is_stored(adapter):
    base = case(adapter.kind, "plain")
    typed = adapter.cls(base.layer, 2, 3.0, key=jax.random.key(9))
    raw = adapter.cls(base.layer, 2, 3.0, key=jax.random.PRNGKey(9))
    assert equal_leaves(typed, raw)
    assert not any(
        jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in jax.tree.leaves(typed)
    )


@adapters(linear=("plain", "subclass"), conv=("plain", "subclass"))
def test_the_key_that_equinox_passes_to_every_layer_changes_nothing(adapter, base):
    wrapper = perturb(build(adapter, base))
    inputs = base.arguments()
    assert equal_leaves(wrapper(*inputs, key=jax.random.key(0)), wrapper(*inputs))
