"""Trained entries and coefficients: where they are, how many, and that nothing moves them."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo_cases import Adapter, assert_close, build, equal_leaves, perturb

from jno_lora_zoo import FourierFTLinear, SHiRALinear, SuperTuningLinear, WaveFTLinear
from jno_lora_zoo._positions import count_of, digits_of, drawn_positions, number_of

METHODS = ("SHiRA", "SuperTuning", "FourierFT", "WaveFT")
each_method = pytest.mark.parametrize("method", METHODS)


def linear(inputs, outputs, seed=0):
    return eqx.nn.Linear(inputs, outputs, key=jax.random.key(seed))


def flat(wrapper):
    """The positions as integers, by NumPy."""
    return np.asarray(wrapper.positions).astype(np.int64) @ 256 ** np.arange(4)


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.float32, jnp.bfloat16, jnp.float16])
def test_numbers_of_32_bits_survive_as_digits_of_any_dtype(dtype):
    numbers = [0, 1, 255, 256, 2049, 65535, 16777217, 2**31 + 1, 2**32 - 1]
    digits = digits_of(jnp.asarray(np.array(numbers, np.uint32)))
    assert digits.dtype == jnp.uint8 and digits.shape == (9, 4)
    np.testing.assert_array_equal(number_of(digits.astype(dtype)), np.array(numbers, np.uint32))


@pytest.mark.parametrize("n", [1, 7, 22, 30])
def test_drawn_positions_differ_and_are_equally_likely(n):
    draws = 4000
    keys = jax.random.split(jax.random.key(0), draws)
    drawn = np.asarray(number_of(jax.vmap(lambda key: drawn_positions(key, n, 30))(keys)))
    assert drawn.shape == (draws, n)
    assert all(len(set(row)) == n for row in drawn)
    frequencies = np.bincount(drawn.ravel(), minlength=30) / draws
    assert len(frequencies) == 30
    deviation = np.sqrt(n / 30 * (1 - n / 30) / draws)
    assert np.max(np.abs(frequencies - n / 30)) <= 4.5 * deviation


def test_positions_reach_the_ends_of_a_large_matrix():
    size = 2**31 + 2**30 + 7
    places = np.asarray(number_of(drawn_positions(jax.random.key(1), 5000, size))).astype(np.int64)
    assert len(set(places)) == 5000
    (one,) = np.asarray(number_of(drawn_positions(jax.random.key(1), 1, size)))
    assert one < size
    assert places.min() < 0.001 * size and 0.999 * size < places.max() < size


def test_a_matrix_beyond_32_bits_is_refused():
    with pytest.raises(ValueError, match=r"has 4294967296 entries, but positions end at 2\^32"):
        count_of((2**16, 2**16), 4, 10, "count")


@each_method
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_positions_survive_a_cast_of_every_leaf(method, dtype):
    wrapper = build(Adapter(method, "Linear"), linear(70, 100), rank=2)
    cast = jax.tree.map(lambda x: x.astype(dtype), wrapper)
    assert cast.positions.dtype == dtype
    back = jax.tree.map(lambda x, y: x.astype(y.dtype), cast, wrapper)
    assert equal_leaves(back.positions, wrapper.positions)
    moved, x = perturb(cast), jnp.linspace(-1, 1, 70).astype(dtype)
    assert_close(moved(x), moved.merge()(x), 8 * float(jnp.finfo(dtype).eps))
    assert np.max(np.abs(np.asarray(moved(x) - cast(x)).astype(np.float32))) > 0


@each_method
def test_the_slices_of_a_stack_have_positions_of_their_own(method):
    cls = build(Adapter(method, "Linear"), linear(6, 5), rank=1).__class__
    keys = jax.random.split(jax.random.key(0), 3)
    layers = eqx.filter_vmap(lambda key: eqx.nn.Linear(6, 5, key=key))(keys)
    stack = eqx.filter_vmap(lambda layer, key: cls(layer, 1, 3.0, key=key))(layers, keys)
    assert stack.positions.shape == (3, 11, 4)
    assert len({np.asarray(positions).tobytes() for positions in stack.positions}) == 3


@each_method
def test_positions_do_not_train_and_are_saved(method):
    wrapper = perturb(build(Adapter(method, "Linear"), linear(6, 5)))
    state = wrapper.state()
    assert state["positions"].dtype == jnp.uint8
    other = type(wrapper).from_state(linear(6, 5), state, wrapper.rank, wrapper.alpha)
    assert equal_leaves(other, wrapper)


OPTIONS = [
    (SuperTuningLinear, {"count": 9}, "values"),
    (SuperTuningLinear, {"sparsity": 0.7, "largest": False}, "values"),
    (FourierFTLinear, {"n_frequency": 9}, "coefficients"),
    (WaveFTLinear, {"n_frequency": 9, "wavelet": "db3"}, "coefficients"),
    (WaveFTLinear, {"n_frequency": 9, "wavelet": "none"}, "coefficients"),
]


@pytest.mark.parametrize(("cls", "options", "name"), OPTIONS)
def test_the_number_is_an_option_that_the_state_implies(cls, options, name):
    layer, key = linear(6, 5), jax.random.key(0)
    wrapper = cls(layer, 2, 3.0, key=key, **options)
    assert getattr(wrapper, name).shape == (9,)
    again = cls(layer, 2, 3.0, key=key, **cls.options_of(wrapper.state()))
    shapes = [{k: v.shape for k, v in w.state().items()} for w in (wrapper, again)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    ("cls", "name"),
    [(SuperTuningLinear, "count"), (FourierFTLinear, "n_frequency"), (WaveFTLinear, "n_frequency")],
)
@pytest.mark.parametrize("number", [0, 31, -1, 2.0, True])
def test_a_number_that_does_not_fit_is_refused(cls, name, number):
    with pytest.raises(
        ValueError, match=rf"`{name}` must be a whole number from 1 to 30, .* \(5, 6\), but is"
    ):
        cls(linear(6, 5), 2, 3.0, key=jax.random.key(0), **{name: number})


def test_a_small_layer_trains_all_entries():
    wrapper = SHiRALinear(linear(3, 2), 2, 1.0, key=jax.random.key(0))
    assert sorted(flat(wrapper)) == list(range(6))


@pytest.mark.parametrize(("sparsity", "n"), [(0.0, 30), (0.5, 15), (0.9, 2), (0.99 - 0.03, 1)])
@pytest.mark.parametrize("largest", [True, False])
def test_super_tuning_takes_the_entries_by_size(sparsity, n, largest):
    layer = linear(6, 5)
    options = {"sparsity": sparsity, "largest": largest}
    wrapper = SuperTuningLinear(layer, 2, 1.0, key=jax.random.key(0), **options)
    order = np.argsort(np.abs(np.asarray(layer.weight)).ravel())
    expected = order[len(order) - n :] if largest else order[:n]
    assert list(flat(wrapper)) == sorted(expected)


@pytest.mark.parametrize("sparsity", [0.99, 1.0, 1.5, -0.1, float("nan")])
def test_a_sparsity_that_leaves_no_entry_is_refused(sparsity):
    with pytest.raises(ValueError, match=r"`sparsity` must be at least 0 .* \(5, 6\) that trains"):
        SuperTuningLinear(linear(6, 5), 2, 1.0, key=jax.random.key(0), sparsity=sparsity)


def test_sparsity_and_count_together_are_refused():
    with pytest.raises(ValueError, match="say the same: give one of them"):
        SuperTuningLinear(linear(6, 5), 2, 1.0, key=jax.random.key(0), sparsity=0.5, count=2)
