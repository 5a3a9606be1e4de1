"""Structured updates: which way they are computed, and their options."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.jet import jet
from zoo_cases import (
    ALL_METHODS,
    OPTIONS,
    assert_close,
    equal_leaves,
    fields_of,
    made,
    perturb,
    reference,
    shapes_in_jaxpr,
)
from zoo_cases.layers import matrix_of

import jno_lora_zoo
from jno.lora import lora_trainable_filter
from jno_lora_zoo import Additive


def trained(name, layer, rank, **options):
    """The adapter of that name after some training."""
    cls = getattr(jno_lora_zoo, name)
    return perturb(cls(layer, rank, 3.0, key=jax.random.key(1), **options))


def linear(inputs, outputs):
    return eqx.nn.Linear(inputs, outputs, key=jax.random.key(0))


def table_or_linear(name, inputs, outputs):
    """A layer with an `(outputs, inputs)` matrix, of the kind that the adapter is for."""
    if name.endswith("Linear"):
        return linear(inputs, outputs)
    return eqx.nn.Embedding(inputs, outputs, key=jax.random.key(0))


def calls_shapes(wrapper):
    """The shapes of all arrays that a call makes."""
    x = jnp.ones(wrapper.base.weight.shape[1])
    return shapes_in_jaxpr(lambda w, x: w(x), wrapper, x)


@eqx.filter_jit  # one program in the place of many operations
def matrix_and_outputs(wrapper, x):
    """The merged matrix, and what the wrapped and the merged layer compute."""
    merged = wrapper.merge()
    if isinstance(wrapper.base, eqx.nn.Embedding):
        return wrapper.matrix(merged), jax.vmap(wrapper)(x), jax.vmap(merged)(x)
    return wrapper.matrix(merged), wrapper(x), merged(x)


def assert_computes(wrapper, W):
    """The merged layer's matrix is `W`, and the wrapped layer computes the same as the merged."""
    is_table = isinstance(wrapper.base, eqx.nn.Embedding)
    x = np.arange(W.shape[1]) if is_table else np.linspace(-1, 1, W.shape[1], dtype=np.float32)
    matrix, y, expected = matrix_and_outputs(wrapper, jnp.asarray(x))
    assert_close(matrix, W, 1e-6)
    assert_close(y, expected, 1e-5)


def computes_the_law(method, wrapper, rank):
    assert_computes(
        wrapper, reference(method, fields_of(wrapper), matrix_of(wrapper.base), rank, 3.0)
    )


def has_times(method):
    cls = getattr(jno_lora_zoo, method)
    return issubclass(cls, Additive) and cls.times is not Additive.times


@pytest.mark.parametrize("method", [*filter(has_times, ALL_METHODS)])
def test_the_product_without_the_matrix_and_a_column_are_those_of_the_law(method):
    cls = getattr(jno_lora_zoo, f"{method}Linear")
    has_column = cls.column is not Additive.column

    @eqx.filter_jit
    def computed(adapter, v):
        W = adapter.base.weight
        column = adapter.column(W.shape, jnp.asarray(W.shape[1] - 1)) if has_column else None
        return adapter.law(W) - W, adapter.times(W.shape, v), column

    for outputs, inputs in ((4, 9), (9, 4)):
        layer, key = linear(inputs, outputs), jax.random.key(1)
        adapter = perturb(made(cls, layer, 2, 3.0, key=key, **OPTIONS.get(method, {})))
        v = jax.random.normal(key, (inputs,))
        update, product, column = computed(adapter, v)
        assert jnp.max(jnp.abs(update)) > 1e-2
        assert_close(product, update @ v, 2e-5)
        if has_column:
            assert_close(column, update[:, -1], 2e-5)


@pytest.mark.parametrize(("rank", "by_matrix"), [(2, False), (3, True)])
def test_loha_takes_the_way_that_costs_less(rank, by_matrix):
    # The product of rank r^2 costs r^2 (in + out), which is to be at most in out / 2.
    wrapper = trained("LoHaLinear", linear(19, 18), rank)
    assert (wrapper.base.weight.shape in calls_shapes(wrapper)) == by_matrix
    x = jnp.linspace(-1, 1, 19)
    assert_close(wrapper(x), wrapper.merge()(x), 1e-5)


def test_loha_has_a_low_rank_form_of_rank_r_squared_unless_that_is_the_full_rank():
    A, B, *_ = trained("LoHaLinear", linear(12, 9), 2).low_rank_form()
    assert (A.shape, B.shape) == ((4, 12), (9, 4))
    for rank in (3, 4):
        assert trained("LoHaLinear", linear(12, 9), rank).low_rank_form() is None


@pytest.mark.parametrize("name", ["MiSSLinear", "MiSSEmbedding"])
def test_miss_mini_repeats_over_the_outputs_and_bat_maps_each_block_of_the_weight(name):
    wrapper = trained(name, table_or_linear(name, 7, 6), 3, mini=2)
    D = np.asarray(wrapper.D, np.float64)
    update = [[D[i % 3, o % 2] for i in range(7)] for o in range(6)]
    assert D.shape == (3, 2) and type(wrapper).options_of(wrapper.state()) == {"mini": 2}
    assert_computes(wrapper, np.asarray(wrapper.matrix(wrapper.base)) + update)

    wrapper = trained(name, table_or_linear(name, 6, 4), 2, bat=True)
    W, D = np.asarray(wrapper.matrix(wrapper.base)).astype(np.float64), np.asarray(wrapper.D)
    expected = W.copy()
    for k, n in np.ndindex(2, 3):
        block = np.s_[2 * k : 2 * k + 2, 2 * n : 2 * n + 2]
        expected[block] += W[block] @ D[k] + D[k]
    assert D.shape == (2, 2, 2) and type(wrapper).options_of(wrapper.state()) == {"bat": True}
    assert_computes(wrapper, expected)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("MiSSLinear", {"mini": 2, "bat": True}, "not both"),
        ("MiSSLinear", {"mini": 4}, "divide the number of outputs, 6, but is 4"),
        ("MiSSLinear", {"bat": True}, r"divide the sizes of the matrix, \(6, 7\), but is 4"),
        ("GraLoRALinear", {"k": 3}, "`k` is 3 and the rank 4"),
        ("C3ALinear", {"init": "gaussian"}, "'zeros' or 'xavier_uniform', but is 'gaussian'"),
        (
            "RandLoRALinear",
            {"bases": (jnp.ones((4, 7)), jnp.ones((6, 8)))},
            r"the shapes \(4, 6\) and \(7, 8\), but theirs are",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        trained(name, linear(7, 6), 4, **options)


@pytest.mark.parametrize(
    ("inputs", "outputs", "rank", "k"),
    [
        *((7, 5, 1, 1), (7, 5, 4, 2), (5, 7, 9, 3), (7, 2, 9, 1), (2, 7, 9, 1), (7, 3, 9, 3)),
    ],
)
def test_every_block_of_the_default_grid_of_gralora_has_an_entry(inputs, outputs, rank, k):
    wrapper = trained("GraLoRALinear", linear(inputs, outputs), rank)
    assert wrapper.A.shape == (k, -(-inputs // k), rank) and wrapper.rank == rank
    assert type(wrapper).options_of(wrapper.state()) == {"k": k}
    computes_the_law("GraLoRA", wrapper, rank)


@pytest.mark.parametrize("name", ["GraLoRALinear", "GraLoRAEmbedding"])
def test_gralora_takes_another_grid_which_its_shapes_tell(name):
    wrapper = trained(name, table_or_linear(name, 12, 8), 4, k=4)
    A, B = (np.asarray(x).astype(np.float64) for x in (wrapper.A, wrapper.B))
    blocks = [[np.outer(B[j, n], A[n, :, j]) for n in range(4)] for j in range(4)]
    W = np.asarray(wrapper.matrix(wrapper.base)).astype(np.float64)
    assert_computes(wrapper, W + 3 / 4 * np.block(blocks))
    assert type(wrapper).options_of(wrapper.state()) == {"k": 4}
    with pytest.raises(ValueError, match=r"\(3, 12\) has no 4 x 4 blocks with an entry in each"):
        trained("GraLoRALinear", linear(12, 3), 4, k=4)


@pytest.mark.parametrize(("inputs", "outputs"), [(70, 68), (64, 96)])
def test_c3a_convolves_large_blocks_by_fft(inputs, outputs):
    wrapper = trained("C3ALinear", linear(inputs, outputs), 32)
    assert wrapper.base.weight.shape not in calls_shapes(wrapper)
    computes_the_law("C3A", wrapper, 32)


def test_taylor_mode_and_half_precision_follow_the_fft_of_c3a():
    wrapper = trained("C3ALinear", linear(36, 33), 32)
    x = jnp.linspace(-1, 1, 36)

    def third_derivative(layer):
        return jet(lambda x: jnp.sin(layer(x)), (x,), ((x, 2 * x, 0 * x),))[1][2]

    assert_close(third_derivative(wrapper), third_derivative(wrapper.merge()), 1e-4)
    for dtype in (jnp.bfloat16, jnp.float16):
        layer = eqx.nn.Linear(40, 36, key=jax.random.key(0), dtype=dtype)
        wrapper, x = trained("C3ALinear", layer, 32), jnp.linspace(-1, 1, 40).astype(dtype)
        assert wrapper(x).dtype == dtype
        assert_close(wrapper(x), wrapper.merge()(x), 8 * float(jnp.finfo(dtype).eps))


def test_an_embedding_by_c3a_is_not_divided_by_the_size_of_the_table():
    wrapper = trained("C3AEmbedding", table_or_linear("C3AEmbedding", 9, 6), 4)
    W, K = np.asarray(wrapper.matrix(wrapper.base)).astype(np.float64), np.asarray(wrapper.kernel)
    for o, i in np.ndindex(W.shape):
        W[o, i] += K[o // 4, i // 4, (i - o) % 4]
    assert_computes(wrapper, W)


def test_c3a_may_start_from_random_kernels():
    options = ({}, {"init": "xavier_uniform"})
    zeros, kernel = (
        jno_lora_zoo.C3ALinear(linear(8, 6), 2, 1.0, key=jax.random.key(0), **o).kernel
        for o in options
    )
    bound = np.sqrt(6 / (8 + 6))
    assert bound / 2 < np.max(np.abs(kernel)) <= bound
    assert not np.any(zeros)


@pytest.mark.parametrize(("inputs", "outputs"), [(7, 5), (5, 7), (6, 6)])
def test_randlora_keeps_given_bases_and_reads_them_from_a_state(inputs, outputs):
    smaller, larger = sorted((inputs, outputs))
    rng = np.random.default_rng(0)
    bases = rng.normal(size=(3, smaller)), rng.normal(size=(larger, 3 * -(-smaller // 3)))
    wrapper = trained("RandLoRALinear", linear(inputs, outputs), 3, bases=bases)
    assert_close(wrapper.basis_A, bases[0], 1e-6)
    assert_close(wrapper.basis_B, bases[1], 1e-6)
    computes_the_law("RandLoRA", wrapper, 3)
    options = type(wrapper).options_of(wrapper.state())
    again = trained("RandLoRALinear", linear(inputs, outputs), 3, **options)
    assert equal_leaves(again.merge(), wrapper.merge())


@pytest.mark.parametrize("name", ["RandLoRALinear", "RandLoRAEmbedding"])
def test_randlora_saves_a_seed_and_its_update_has_full_rank(name):
    wrapper = trained(name, table_or_linear(name, 7, 5), 3)
    assert wrapper.state().keys() == {"lambdas", "gammas", "seed"}
    assert type(wrapper).options_of(wrapper.state()) == {}
    update = np.asarray(wrapper.matrix(wrapper.merge()) - wrapper.matrix(wrapper.base))
    assert np.linalg.matrix_rank(update) == 5
    assert wrapper.low_rank_form() is None


@pytest.mark.parametrize(
    ("method", "dtype"),
    [
        *((method, jnp.float32) for method in ("RandLoRA", "SHiRA", "FourierFT", "C3A")),
        *((method, jnp.bfloat16) for method in ("HiRA", "SuperTuning", "WaveFT")),
    ],
)
def test_the_backward_pass_of_a_scan_keeps_no_matrix_of_a_layer(method, dtype):
    layers, n = 5, 24
    cls = getattr(jno_lora_zoo, f"{method}Linear")

    def layer(key):
        return cls(eqx.nn.Linear(n, n, dtype=dtype, key=key), 2, 3.0, key=key)

    stack = eqx.filter_vmap(layer)(jax.random.split(jax.random.key(0), layers))
    trainable, frozen = eqx.partition(stack, lora_trainable_filter(stack))
    frozen, static = eqx.partition(frozen, eqx.is_array)

    def loss(trainable):
        def step(x, one):
            return eqx.combine(*one, static)(x), None

        return jnp.sum(jax.lax.scan(step, jnp.ones(n, dtype), (trainable, frozen))[0])

    kept = shapes_in_jaxpr(jax.grad(loss), trainable)
    assert (n, n) in kept and (layers, n, n) not in kept
