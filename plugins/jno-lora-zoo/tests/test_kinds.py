"""Tables, cells and norms in models: what the oracle and the kit do not show of these kinds."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo_cases import assert_close, perturb, shapes_in_jaxpr

import jno_lora_zoo
from jno.lora import Net, WrapperError, merge_lora, unwrap_lora
from jno_lora_zoo import CorDA, EmbeddingLayer, RecurrentLayer, collect_statistics

NUM, DIM, RANK = 11, 6, 4
KEY = jax.random.key(0)


def table(num=NUM):
    return eqx.nn.Embedding(num, DIM, key=KEY)


def lookup(method, base, rank=RANK):
    return getattr(jno_lora_zoo, f"{method}Embedding")(base, rank, 1.0, key=jax.random.key(1))


@pytest.mark.parametrize("method", ["LoRA", "rsLoRA", "LoRAFA", "DoRA", "VeRA"])
def test_a_row_of_a_long_table_starts_with_variance_one(method):
    wrapper = lookup(method, table(600))
    A = wrapper.projections(jnp.zeros((DIM, 600)))[0] if method == "VeRA" else wrapper.lora_A
    assert A.shape == (RANK, 600)
    # Within five standard deviations, of the variance of 2400 normal numbers.
    assert abs(np.var(np.asarray(A)) - 1) < 5 * (2 / A.size) ** 0.5


@pytest.mark.parametrize("method", ["LoRA", "LoRAFA", "PiSSA", "LoRAXS", "LoKr"])
def test_lookups_never_form_the_table(method):
    wrapper = lookup(method, table())
    shapes = shapes_in_jaxpr(lambda w, i: w(i), wrapper, jnp.array(3))
    shapes |= shapes_in_jaxpr(lambda w, i: jax.vmap(w)(i), wrapper, jnp.arange(5))
    # (8, 12) is LoKr's product before it is cut.
    assert not shapes & {(NUM, DIM), (DIM, NUM), (NUM,), (1, NUM), (5, NUM), (8, 12)}


def test_a_lookup_rotates_the_block_that_it_reads():
    wrapper = lookup("OFTIn", table(), 3)
    shapes = shapes_in_jaxpr(lambda w: w(jnp.array(7)), wrapper)
    assert (3, 3) in shapes and (4, 3, 3) not in shapes


# One of each way to compute a lookup.
@pytest.mark.parametrize("method", ["LoRA", "DoRA", "LoKr", "PiSSA", "IA3In"])
def test_any_id_means_what_it_means_to_the_base(method):
    wrapper = perturb(lookup(method, table(300)))
    merged, read = wrapper.merge(), jax.jit(jax.vmap(lambda m, i: m(i), in_axes=(None, 0)))
    wide = jnp.array([-1, -300, -301, -900, 0, 299, 300, 999], jnp.int32)
    for ids in (wide, wide.astype(jnp.int16), jnp.array([200, 255], jnp.uint8)):
        np.testing.assert_allclose(read(wrapper, ids), read(merged, ids), rtol=1e-4, atol=1e-5)


def test_spectral_norm_keeps_its_state_and_works_in_a_sequential():
    def make(key):
        first, second, norm = jax.random.split(key, 3)
        normed = eqx.nn.SpectralNorm(eqx.nn.Linear(3, 5, key=second), "weight", key=norm)
        return eqx.nn.Sequential(
            [eqx.nn.Linear(4, 3, key=first), normed, eqx.nn.Lambda(jax.nn.relu)]
        )

    model, state = eqx.nn.make_with_state(make)(KEY)
    x = jax.random.normal(KEY, (4,))
    net = Net(model).lora(2, wrapper=["lora", "lora-in-norm"])
    assert [row.wrapper.__name__ for row in net.summary()] == ["LoRALinear", "LoRAInNorm"]
    run = eqx.filter_jit(lambda model, state: model(x, state))
    (y, after), (expected, expected_state) = run(net.module, state), run(model, state)
    assert_close(y, expected, 1e-5)
    sums = [jnp.stack(jax.tree.leaves(jax.tree.map(jnp.sum, s))) for s in (after, expected_state)]
    assert_close(*sums, 1e-5)
    moved = perturb(net.module)
    assert_close(run(moved, state)[0], run(merge_lora(moved), state)[0], 1e-5)
    assert eqx.tree_equal(unwrap_lora(moved), model)
    # Both flags, that of the norm inside the adapter included.
    quiet = eqx.nn.inference_mode(moved)
    assert quiet.layers[1].base.inference is True and quiet.layers[1].inference is True
    assert eqx.tree_equal(run(quiet, state)[1], state)


# What calibration sees, for layers that the kit does not try.
class MeasuredTable(CorDA, EmbeddingLayer):
    """Starts from the covariance of the one-hot rows that a table reads."""


class MeasuredCell(CorDA, RecurrentLayer):
    """Starts from the covariance of what a cell reads."""


def test_ids_are_measured_as_the_rows_that_they_read():
    ids = jnp.array([0, 3, 3, -1, 99])  # from the end, and beyond it
    loss = lambda model, ids: jnp.sum(jax.vmap(model)(ids) ** 2)  # noqa: E731
    found = collect_statistics(table(), [ids], loss, wrapper=MeasuredTable)[""]["input_covariance"]
    counts = np.zeros(NUM)
    counts[[0, 3, 10]] = 1, 2, 2
    np.testing.assert_allclose(found, np.diag(counts / 5), atol=1e-6)


@pytest.mark.parametrize("make", [eqx.nn.GRUCell, eqx.nn.LSTMCell])
def test_the_inputs_of_a_cell_are_its_input_and_its_state(make):
    cell, x, h = make(3, 2, key=KEY), jnp.arange(3.0), jnp.array([1.0, -2.0])
    state = h if make is eqx.nn.GRUCell else (h, jnp.ones(2))
    loss = lambda cell, x: sum(map(jnp.sum, jax.tree.leaves(cell(x, state))))  # noqa: E731
    found = collect_statistics(cell, [x], loss, wrapper=MeasuredCell)[""]["input_covariance"]
    read = np.array([0, 1, 2, 1, -2.0])
    np.testing.assert_allclose(found, np.outer(read, read), atol=1e-6)


def test_a_convolution_that_does_more_cannot_be_calibrated():
    class Scaled(eqx.nn.Conv1d):
        def __call__(self, x, *, key=None):
            return super().__call__(2 * x)

    with pytest.raises(WrapperError, match="inputs of a Scaled are not known as patches"):
        jno_lora_zoo.EVAConv.inputs_of(Scaled(2, 3, 3, key=KEY), jnp.ones((2, 5)))
