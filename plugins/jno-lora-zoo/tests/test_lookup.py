"""Every method on an embedding table: a lookup in the adapted table, without forming it."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo_cases import perturb, shapes_in_jaxpr

import jno_lora_zoo
from jno.lora import (
    apply_lora,
    lora_trainable_filter,
    merge_lora,
)
from jno_lora_zoo import (
    METHODS,
    DoRAEmbedding,
    IA3Embedding,
    LoKrEmbedding,
    LoRAEmbedding,
    PiSSAEmbedding,
)

NUM, DIM, RANK = 11, 6, 4
ADAPTERS = [getattr(jno_lora_zoo, f"{method.__name__}Embedding") for method in METHODS]
# No product of theirs has the shape of the table, whatever XLA does with it.
LOW_RANK = [
    c for c in ADAPTERS if c.method.variant in ("lora", "rslora", "lora-fa", "pissa", "lora-xs")
]
# One of each way to compute a lookup.
EACH_WAY = [LoRAEmbedding, DoRAEmbedding, LoKrEmbedding, PiSSAEmbedding]
each_way = pytest.mark.parametrize("cls", EACH_WAY, ids=lambda cls: cls.__name__)


def table(key, dtype=jnp.float32, num=NUM, dim=DIM):
    return eqx.nn.Embedding(weight=jax.random.normal(key, (num, dim)).astype(dtype))


def test_lora_is_the_transposed_product(getkey):
    base = table(getkey())
    wrapper = perturb(LoRAEmbedding(base, RANK, 2.0, key=getkey()))
    assert wrapper.lora_A.shape == (RANK, NUM) and wrapper.lora_B.shape == (DIM, RANK)
    A, B = np.asarray(wrapper.lora_A), np.asarray(wrapper.lora_B)
    expected = np.asarray(base.weight) + 2.0 / RANK * (B @ A).T
    np.testing.assert_allclose(wrapper.merge().weight, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(wrapper(jnp.array(3)), expected[3], rtol=1e-5, atol=1e-6)


def test_lokr_looks_up_one_column_of_each_factor(getkey):
    # Neither size divides by the rank, so that the product is cut on both axes.
    base = table(getkey(), num=11, dim=7)
    wrapper = perturb(LoKrEmbedding(base, 3, 1.0, key=getkey()))
    product = np.kron(np.asarray(wrapper.kron_A), np.asarray(wrapper.kron_B))[:7, :11]
    expected = np.asarray(base.weight) + product.T / 3
    np.testing.assert_allclose(jax.vmap(wrapper)(jnp.arange(11)), expected, rtol=1e-5, atol=1e-6)


def test_ia3_and_dora_act_on_dimensions_of_the_embedding(getkey):
    base = table(getkey())
    ia3 = IA3Embedding(base, 1, 1.0, key=getkey())
    factors = jnp.arange(1.0, DIM + 1)
    ia3 = eqx.tree_at(lambda w: w.scale, ia3, factors)
    np.testing.assert_allclose(ia3(jnp.array(2)), base.weight[2] * factors, rtol=1e-6)
    dora = DoRAEmbedding(base, RANK, 1.0, key=getkey())
    norms = np.linalg.norm(np.asarray(base.weight), axis=0)
    np.testing.assert_allclose(dora.magnitude, norms, rtol=1e-5)


@pytest.mark.parametrize("variant", ["lora", "rslora", "lora-fa", "dora", "vera"])
def test_a_row_of_a_long_table_starts_with_variance_one(variant, getkey):
    (cls,) = (cls for cls in ADAPTERS if cls.method.variant == variant)
    wrapper = cls(table(getkey(), num=600), RANK, 1.0, key=getkey())
    W = jnp.zeros((DIM, 600))
    A = wrapper.projections(W)[0] if variant == "vera" else wrapper.lora_A
    assert A.shape == (RANK, 600)
    # Within five standard deviations, of the variance of 2400 normal numbers.
    assert abs(np.var(np.asarray(A)) - 1) < 5 * (2 / A.size) ** 0.5


@pytest.mark.parametrize("cls", LOW_RANK, ids=lambda cls: cls.__name__)
def test_low_rank_lookups_never_form_the_table(cls, getkey):
    wrapper = cls(table(getkey()), RANK, 1.0, key=getkey())
    shapes = shapes_in_jaxpr(lambda w, i: w(i), wrapper, jnp.array(3))
    assert not shapes & {(NUM, DIM), (DIM, NUM), (NUM,), (1, NUM)}
    batch = shapes_in_jaxpr(lambda w, i: jax.vmap(w)(i), wrapper, jnp.arange(5))
    assert not batch & {(NUM, DIM), (DIM, NUM), (5, NUM)}


def test_lokr_never_forms_the_product(getkey):
    wrapper = LoKrEmbedding(table(getkey()), RANK, 1.0, key=getkey())
    shapes = shapes_in_jaxpr(lambda w, i: w(i), wrapper, jnp.array(3))
    # (8, 12) is the product before it is cut.
    assert not shapes & {(NUM, DIM), (DIM, NUM), (8, 12), (NUM,)}


@each_way
@pytest.mark.parametrize("dtype", [jnp.int32, jnp.int8], ids=lambda d: d.__name__)
def test_any_id_means_what_it_means_to_the_base(cls, dtype, getkey):
    wrapper = perturb(cls(table(getkey()), RANK, 1.0, key=getkey()))
    ids = jnp.array([-1, -NUM, -NUM - 1, -90, 0, NUM - 1, NUM, 99], dtype)
    looked_up, merged = (jax.vmap(layer)(ids) for layer in (wrapper, wrapper.merge()))
    np.testing.assert_allclose(looked_up, merged, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cls", [LoRAEmbedding, LoKrEmbedding])
def test_narrow_ids_reach_every_row_of_a_large_table(cls, getkey):
    wrapper = perturb(cls(table(getkey(), num=300), RANK, 1.0, key=getkey()))
    merged = wrapper.merge()
    for i in (jnp.uint8(255), jnp.uint16(299), jnp.int8(-1), jnp.uint32(2**32 - 1)):
        np.testing.assert_allclose(eqx.filter_jit(wrapper)(i), merged(i), rtol=1e-4, atol=1e-5)


def test_refuses_what_the_base_refuses(getkey):
    wrapper = LoRAEmbedding(table(getkey()), RANK, 1.0, key=getkey())
    with pytest.raises(ValueError, match="scalar index"):
        wrapper(jnp.array([1, 2]))
    with pytest.raises(TypeError, match="integer"):
        wrapper(jnp.array(1.0))


@each_way
def test_half_precision_tables_are_read_as_they_are_merged(cls, getkey):
    base = table(getkey(), jnp.bfloat16)
    wrapper = cls(base, RANK, 1.0, key=getkey())
    floats = jax.tree.leaves(eqx.filter(wrapper, lora_trainable_filter(wrapper)))
    assert all(x.dtype == jnp.float32 for x in floats)
    wrapper = perturb(wrapper)
    looked_up, merged = jax.vmap(wrapper)(jnp.arange(NUM)), wrapper.merge().weight
    assert looked_up.dtype == merged.dtype == jnp.bfloat16
    # Both are computed in float32 and rounded once: they part by one unit in the last place.
    # (A rounded base enters PiSSA's and MiLoRA's law on both sides alike.)
    np.testing.assert_allclose(
        looked_up.astype(jnp.float32), merged.astype(jnp.float32), rtol=2**-7, atol=1e-4
    )


@each_way
def test_gradients_reach_the_adapter_alone(cls, getkey):
    wrapper = perturb(cls(table(getkey()), RANK, 1.0, key=getkey()))
    trainable, frozen = eqx.partition(wrapper, lora_trainable_filter(wrapper))
    ids, targets = jnp.array([1, 4, 4, 9]), jax.random.normal(getkey(), (4, DIM))

    @jax.jit
    @jax.grad
    def gradient(trainable, frozen):
        return jnp.sum((jax.vmap(eqx.combine(trainable, frozen))(ids) - targets) ** 2)

    grads = gradient(trainable, frozen)
    assert grads.base.weight is None
    assert all(jnp.all(jnp.isfinite(g)) for g in jax.tree.leaves(grads))
    assert all(jnp.any(g != 0) for g in jax.tree.leaves(grads))


def test_only_the_columns_that_were_read_get_a_gradient(getkey):
    wrapper = perturb(LoRAEmbedding(table(getkey()), RANK, 1.0, key=getkey()))
    grads = eqx.filter_grad(lambda w: jnp.sum(w(jnp.array(4))))(wrapper)
    assert set(np.flatnonzero(np.any(np.asarray(grads.lora_A) != 0, axis=0))) == {4}


@each_way
def test_stacked_tables(cls, getkey):
    weights = jax.random.normal(getkey(), (3, NUM, DIM))
    stack = eqx.filter_vmap(lambda w: eqx.nn.Embedding(weight=w))(weights)
    assert cls.applies_to(stack) and cls.stack_ndim(stack) == 1
    wrapped = apply_lora(stack, 2, 4.0, key=getkey(), wrapper=cls)
    wrapped = perturb(wrapped)
    merged = merge_lora(wrapped)
    assert merged.weight.shape == weights.shape
    dynamic, static = eqx.partition(wrapped, eqx.is_array)

    def body(carry, slice_):
        return carry, jax.vmap(eqx.combine(slice_, static))(jnp.arange(NUM))

    _, rows = jax.lax.scan(body, 0, dynamic)
    np.testing.assert_allclose(rows, merged.weight, rtol=1e-4, atol=1e-5)
