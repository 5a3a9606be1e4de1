"""Structured updates: which way they are computed, and their options."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.jet import jet
from zoo_cases import assert_close, equal_leaves, fields_of, perturb, reference, shapes_in_jaxpr
from zoo_cases.layers import matrix_of

import jno_lora_zoo
from jno.lora import lora_trainable_filter


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


@pytest.mark.parametrize(("rank", "by_matrix"), [(2, False), (3, True)])
def test_loha_takes_the_way_that_costs_less(rank, by_matrix):
    # The product of rank r^2 costs r^2 (in + out), which is to be at most in out / 2.
    wrapper = trained("LoHaLinear", linear(19, 18), rank)
    assert (wrapper.base.weight.shape in calls_shapes(wrapper)) == by_matrix
    x = jnp.linspace(-1, 1, 19)
    assert_close(wrapper(x), wrapper.merge()(x), 1e-5)


def test_the_update_of_loha_is_one_of_rank_r_squared():
    wrapper = trained("LoHaConv", eqx.nn.Conv1d(3, 5, 2, key=jax.random.key(0)), 2)
    A, B = wrapper.low_rank_update()
    assert (A.shape, B.shape) == ((4, 6), (5, 4))
    assert_close(B @ A, matrix_of(wrapper.merge()) - matrix_of(wrapper.base), 1e-5)


def test_miss_sums_the_inputs_before_the_product():
    shapes = calls_shapes(trained("MiSSLinear", linear(7, 5), 3))
    assert (3,) in shapes and (5, 7) not in shapes


@pytest.mark.parametrize("name", ["MiSSLinear", "MiSSEmbedding"])
def test_miss_mini_repeats_over_the_outputs_too(name):
    wrapper = trained(name, table_or_linear(name, 7, 6), 3, mini=2)
    D = np.asarray(wrapper.D, np.float64)
    update = [[D[i % 3, o % 2] for i in range(7)] for o in range(6)]
    assert D.shape == (3, 2)
    assert_computes(wrapper, np.asarray(wrapper.matrix(wrapper.base)) + update)


@pytest.mark.parametrize("name", ["MiSSLinear", "MiSSEmbedding"])
def test_miss_bat_maps_each_block_of_the_weight(name):
    wrapper = trained(name, table_or_linear(name, 6, 4), 2, bat=True)
    W, D = np.asarray(wrapper.matrix(wrapper.base)).astype(np.float64), np.asarray(wrapper.D)
    expected = W.copy()
    for k, n in np.ndindex(2, 3):
        block = np.s_[2 * k : 2 * k + 2, 2 * n : 2 * n + 2]
        expected[block] += W[block] @ D[k] + D[k]
    assert D.shape == (2, 2, 2)
    assert_computes(wrapper, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mini": 2, "bat": True}, "not both"),
        ({"mini": 4}, "divide the number of outputs, 6, but is 4"),
        ({"mini": 0}, "`mini` must be a whole number of 1 or more, but is 0"),
        ({"mini": 2.0}, "`mini` must be a whole number of 1 or more, but is 2.0"),
        ({"bat": True}, r"divide the sizes of the matrix, \(6, 7\), but is 3"),
    ],
)
def test_miss_refuses_blocks_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        trained("MiSSLinear", linear(7, 6), 3, **options)


@pytest.mark.parametrize("options", [{}, {"mini": 2}, {"bat": True}])
def test_the_shapes_of_miss_tell_its_options(options):
    wrapper = trained("MiSSLinear", linear(8, 4), 2, **options)
    again = trained("MiSSLinear", linear(8, 4), 2, **type(wrapper).options_of(wrapper.state()))
    assert again.D.shape == wrapper.D.shape


@pytest.mark.parametrize(("rank", "k"), [(1, 1), (2, 2), (3, 3), (4, 2), (9, 3)])
def test_gralora_has_a_default_grid_for_every_rank(rank, k):
    wrapper = trained("GraLoRALinear", linear(7, 5), rank)
    assert wrapper.A.shape == (k, -(-7 // k), rank)
    assert wrapper.rank == rank


@pytest.mark.parametrize("name", ["GraLoRALinear", "GraLoRAEmbedding"])
def test_gralora_takes_another_grid_which_its_shapes_tell(name):
    wrapper = trained(name, table_or_linear(name, 12, 8), 4, k=4)
    A, B = (np.asarray(x).astype(np.float64) for x in (wrapper.A, wrapper.B))
    blocks = [[np.outer(B[j, n], A[n, :, j]) for n in range(4)] for j in range(4)]
    W = np.asarray(wrapper.matrix(wrapper.base)).astype(np.float64)
    assert_computes(wrapper, W + 3 / 4 * np.block(blocks))
    assert type(wrapper).options_of(wrapper.state()) == {"k": 4}


def test_gralora_multiplies_by_its_blocks():
    wrapper = trained("GraLoRALinear", linear(12, 8), 2)
    assert (8, 12) not in calls_shapes(wrapper)


@pytest.mark.parametrize(
    ("k", "message"),
    [
        (3, "`k` is 3 and the rank 4"),
        (0, "`k` must be a whole number of 1 or more, but is 0"),
        (2.0, "`k` must be a whole number of 1 or more, but is 2.0"),
        (4, r"\(5, 12\) has no 4 x 4 blocks with an entry in each"),
    ],
)
def test_gralora_refuses_a_grid_that_does_not_fit(k, message):
    with pytest.raises(ValueError, match=message):
        trained("GraLoRALinear", linear(12, 5), 4, k=k)


@pytest.mark.parametrize(("inputs", "outputs", "k"), [(7, 2, 1), (2, 7, 1), (7, 3, 3), (5, 7, 3)])
def test_every_block_of_the_default_grid_has_an_entry(inputs, outputs, k):
    wrapper = trained("GraLoRALinear", linear(inputs, outputs), 9)
    assert type(wrapper).options_of(wrapper.state()) == {"k": k}
    fields, W = fields_of(wrapper), matrix_of(wrapper.base)
    assert_computes(wrapper, reference("GraLoRA", fields, W, 9, 3.0))


@pytest.mark.parametrize(("inputs", "outputs"), [(70, 68), (64, 96)])
def test_c3a_convolves_large_blocks_by_fft(inputs, outputs):
    wrapper = trained("C3ALinear", linear(inputs, outputs), 32)
    assert wrapper.base.weight.shape not in calls_shapes(wrapper)
    W = np.asarray(wrapper.base.weight).astype(np.float64)
    expected = reference("C3A", fields_of(wrapper), W, 32, 3.0)
    assert_computes(wrapper, expected)
    x = jnp.linspace(-1, 1, inputs)
    assert_close(wrapper(x) - wrapper.base.bias, expected @ np.asarray(x), 1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_c3a_convolves_half_precision_in_float32(dtype):
    wrapper = trained("C3ALinear", eqx.nn.Linear(40, 36, key=jax.random.key(0), dtype=dtype), 32)
    x = jnp.linspace(-1, 1, 40).astype(dtype)
    assert wrapper(x).dtype == dtype
    assert_close(wrapper(x), wrapper.merge()(x), 8 * float(jnp.finfo(dtype).eps))


def test_taylor_mode_follows_the_fft_of_c3a():
    wrapper = trained("C3ALinear", linear(36, 33), 32)
    x = jnp.linspace(-1, 1, 36)

    def third_derivative(layer):
        return jet(lambda x: jnp.sin(layer(x)), (x,), ((x, 2 * x, 0 * x),))[1][2]

    assert_close(third_derivative(wrapper), third_derivative(wrapper.merge()), 1e-4)


def test_an_embedding_by_c3a_is_not_divided_by_the_size_of_the_table():
    wrapper = trained("C3AEmbedding", table_or_linear("C3AEmbedding", 9, 6), 4)
    W, K = np.asarray(wrapper.matrix(wrapper.base)).astype(np.float64), np.asarray(wrapper.kernel)
    for o, i in np.ndindex(W.shape):
        W[o, i] += K[o // 4, i // 4, (i - o) % 4]
    assert_computes(wrapper, W)


def test_c3a_may_start_from_random_kernels():
    make = functools.partial(jno_lora_zoo.C3ALinear, linear(8, 6), 2, 1.0, key=jax.random.key(0))
    kernel = make(init="xavier_uniform").kernel
    bound = np.sqrt(6 / (8 + 6))
    assert bound / 2 < np.max(np.abs(kernel)) <= bound
    assert not np.any(make().kernel)
    with pytest.raises(ValueError, match="'zeros' or 'xavier_uniform', but is 'gaussian'"):
        make(init="gaussian")


@pytest.mark.parametrize(("inputs", "outputs"), [(7, 5), (5, 7), (6, 6)])
def test_randlora_keeps_given_bases_and_reads_them_from_a_state(inputs, outputs):
    smaller, larger = sorted((inputs, outputs))
    n = -(-smaller // 3)
    rng = np.random.default_rng(0)
    A, B = rng.normal(size=(3, smaller)), rng.normal(size=(larger, 3 * n))
    wrapper = trained("RandLoRALinear", linear(inputs, outputs), 3, bases=(A, B))
    W = np.asarray(wrapper.base.weight).astype(np.float64)
    fields = fields_of(
        eqx.tree_at(lambda w: w.multiplier, wrapper, 1.0, is_leaf=lambda x: x is None)
    )
    fields.A, fields.B = A, B
    assert_computes(wrapper, reference("RandLoRA", fields, W, 3, 3.0))
    options = type(wrapper).options_of(wrapper.state())
    again = trained("RandLoRALinear", linear(inputs, outputs), 3, **options)
    assert equal_leaves(again.merge(), wrapper.merge())


def test_randlora_saves_a_seed_or_its_bases_and_trains_neither():
    wrapper = trained("RandLoRALinear", linear(7, 5), 3)
    assert wrapper.state().keys() == {"lambdas", "gammas", "seed"}
    assert type(wrapper).options_of(wrapper.state()) == {}
    bases = (jnp.ones((3, 5)), jnp.ones((7, 6)))
    wrapper = trained("RandLoRALinear", linear(7, 5), 3, bases=bases)
    assert np.all(wrapper.basis_A == 1) and np.all(wrapper.basis_B == 1)


def test_randlora_refuses_bases_of_other_shapes():
    with pytest.raises(ValueError, match=r"the shapes \(3, 5\) and \(7, 6\), but theirs are"):
        trained("RandLoRALinear", linear(7, 5), 3, bases=(jnp.ones((3, 7)), jnp.ones((5, 6))))


@pytest.mark.parametrize("name", ["RandLoRALinear", "RandLoRAEmbedding"])
def test_the_update_of_randlora_has_full_rank_and_is_not_exported_as_low_rank(name):
    wrapper = trained(name, table_or_linear(name, 7, 5), 3)
    update = np.asarray(wrapper.matrix(wrapper.merge()) - wrapper.matrix(wrapper.base))
    assert np.linalg.matrix_rank(update) == 5
    assert wrapper.low_rank_update() is None


@pytest.mark.parametrize("rank", [3, 4])
def test_loha_of_full_rank_is_not_exported_as_low_rank(rank):
    wrapper = trained("LoHaLinear", linear(12, 9), rank)
    assert wrapper.low_rank_update() is None
    assert trained("LoHaLinear", linear(12, 9), 2).low_rank_update() is not None


RECOMPUTED = [
    *("RandLoRALinear", "HiRALinear", "SHiRALinear", "SuperTuningLinear"),
    *("FourierFTLinear", "WaveFTLinear", "C3ALinear"),
]


@pytest.mark.parametrize("name", RECOMPUTED)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_backward_pass_of_a_scan_keeps_no_matrix_of_a_layer(name, dtype):
    layers, n = 5, 24
    keys = jax.random.split(jax.random.key(0), layers)

    def layer(key):
        return getattr(jno_lora_zoo, name)(
            eqx.nn.Linear(n, n, dtype=dtype, key=key), 2, 3.0, key=key
        )

    stack = eqx.filter_vmap(layer)(keys)
    trainable, frozen = eqx.partition(stack, lora_trainable_filter(stack))
    frozen, static = eqx.partition(frozen, eqx.is_array)

    def loss(trainable):
        def step(x, one):
            return eqx.combine(*one, static)(x), None

        return jnp.sum(jax.lax.scan(step, jnp.ones(n, dtype), (trainable, frozen))[0])

    kept = shapes_in_jaxpr(jax.grad(loss), trainable)
    assert (n, n) in kept and (layers, n, n) not in kept
