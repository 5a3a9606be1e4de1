"""The kit's check of symmetries, and the makers of symmetries that need no further package."""

import dataclasses
import functools
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.core.good_adapter import Good

from jno.lora import MissingLibraryError
from jno_lora_testing import (
    ConformanceError,
    Symmetry,
    WrapperCase,
    cyclic_shift,
    invariant,
    permutation,
    rotation,
    wrapper_checks,
)

N = 6
KEY = jax.random.key(5)
REVERSAL = Symmetry(
    draw=lambda key: "the reversal",
    on_inputs=lambda element, x: (x[::-1],),
    on_output=lambda element, y: y[::-1],
    name="reversal",
)


def layer(matrix, key):
    linear = eqx.nn.Linear(N, N, use_bias=False, key=key)
    return eqx.tree_at(lambda linear: linear.weight, linear, jnp.asarray(matrix, jnp.float32))


class ScaledIdentity(Good):
    """`(1 + a b) W`, by factors whose rows and columns are averaged: keeps every symmetry."""

    def merge(self):
        factor = 1 + jnp.mean(self.lora_A) * jnp.mean(self.lora_B)
        W = self.base.weight
        return eqx.tree_at(lambda m: m.weight, self.base, W * factor.astype(W.dtype))

    def __call__(self, x):
        return self.merge()(x)


def case_of(*symmetries, wrapper=ScaledIdentity, matrix=None, **changes):
    matrix = 2 * np.eye(N) - 0.3 if matrix is None else matrix
    base = functools.partial(layer, matrix)
    inputs = lambda key: (jax.random.normal(key, (N,)),)  # noqa: E731
    return WrapperCase(wrapper, base, inputs, symmetries=symmetries, **changes)


def check(case, name="symmetries"):
    return wrapper_checks(case)[name]()


def message_of(case, name="symmetries"):
    with pytest.raises(ConformanceError) as error:
        check(case, name)
    return str(error.value)


EVERY = (permutation(N), cyclic_shift(0), REVERSAL)


def test_an_adapter_keeps_its_symmetries_or_declares_a_break_which_must_happen():
    assert check(case_of(*EVERY)) is None
    names = ("permutation", "cyclic shift", "reversal")
    assert check(case_of(*EVERY, wrapper=Good, breaks=names)) is None
    message = message_of(case_of(*EVERY, breaks=("reversal",)))
    assert "declares that the adapter breaks the symmetry 'reversal', but" in message
    assert "What to do: remove 'reversal' from `breaks`" in message


def test_a_merged_layer_alone_may_break_a_symmetry():
    class MergesWrongly(ScaledIdentity):
        def __call__(self, x):
            return ScaledIdentity.merge(self)(x)

        def merge(self):
            return Good.merge(self)

    assert "and the merged layer breaks it" in message_of(case_of(REVERSAL, wrapper=MergesWrongly))
    assert check(case_of(REVERSAL, wrapper=MergesWrongly, mergeable=False)) is None


def test_a_base_without_the_symmetry_or_a_symmetry_that_moves_nothing_is_a_mistake_of_the_case():
    lacking = case_of(REVERSAL, matrix=np.arange(N * N).reshape(N, N) / N)
    message = message_of(lacking)
    assert "The layer itself, without an adapter, lacks the symmetry 'reversal'" in message
    assert "for the reversal, relative error" in message
    assert "What to do: correct the case" in message
    identity = dataclasses.replace(REVERSAL, on_inputs=lambda element, x: (x,))
    assert "No drawn element of the symmetry 'reversal' moves" in message_of(case_of(identity))


def test_names_of_broken_symmetries_are_checked_when_a_case_is_made(unchecked):
    for breaks in (("shift",), "cyclic shift"):
        with pytest.raises(ValueError, match="not symmetries of the case"):
            case_of(cyclic_shift(0), breaks=breaks)
    with pytest.raises(ValueError, match=r"Symmetry\(.*Their names: \['permutation', 'cyclic"):
        case_of(*EVERY, breaks=EVERY[:1])


class NearlyKeepsTheSymmetry(ScaledIdentity):
    """Breaks symmetries by less than the rounding of float32, and at the start not at all."""

    def __call__(self, x):
        size = 1e-8 * jnp.sum(jnp.abs(self.lora_B)).astype(x.dtype)
        return super().__call__(x) + size * jnp.arange(N, dtype=x.dtype)


def test_double_precision_notices_a_small_break():
    case = case_of(REVERSAL, wrapper=NearlyKeepsTheSymmetry, mergeable=False)
    assert check(case) is None
    message = message_of(case, "double-precision")
    assert "the trained adapter in float64 breaks it: for the reversal" in message


def transformed(symmetry, x, y, seed=3):
    element = symmetry.draw(jax.random.key(seed))
    (moved,) = symmetry.on_inputs(element, x)
    return element, moved, symmetry.on_output(element, y)


def test_a_shift_rolls_inputs_and_output_by_its_steps():
    x, y = jnp.arange(24.0).reshape(2, 12), jnp.arange(6)
    (n,), moved, output = transformed(cyclic_shift(1, 0, steps=(2, 1)), x, y)
    assert np.array_equal(moved, np.roll(x, 2 * n, 1)) and np.array_equal(output, np.roll(y, n))
    assert moved.dtype == x.dtype and output.dtype == y.dtype
    (n, m), moved, _ = transformed(cyclic_shift((0, 1)), x, x)
    assert np.array_equal(moved, np.roll(np.roll(x, n, 0), m, 1))


@pytest.mark.slow
def test_strided_convolutions_have_the_shifts_of_their_steps():
    options = {"stride": 2, "padding_mode": "CIRCULAR", "key": KEY}
    down = eqx.nn.Conv1d(2, 3, 3, padding=((1, 0),), **options)
    up = eqx.nn.ConvTranspose1d(2, 3, 3, padding="SAME", **options)
    x = jax.random.normal(KEY, (2, 8))
    for conv, steps in ((down, (2, 1)), (up, (1, 2))):
        _, moved, expected = transformed(cyclic_shift(-1, steps=steps), x, conv(x))
        np.testing.assert_allclose(conv(moved), expected, rtol=1e-5, atol=1e-6)


def test_a_permutation_takes_axes_and_the_chosen_inputs():
    x, y = jnp.arange(15.0).reshape(3, 5), jnp.arange(10).reshape(5, 2)
    symmetry = permutation(5, 1, 0, inputs=(1,))
    order = symmetry.draw(KEY)
    unchanged, moved = symmetry.on_inputs(order, y, x)
    assert unchanged is y and sorted(order) == [0, 1, 2, 3, 4]
    assert np.array_equal(moved, x[:, np.array(order)])
    assert np.array_equal(symmetry.on_output(order, y), y[np.array(order)])
    _, moved, output = transformed(invariant(permutation(4)), jnp.arange(4), 7.0)
    assert output == 7.0 and sorted(moved.tolist()) == [0, 1, 2, 3]


def test_rotations_name_the_package_that_they_need(monkeypatch):
    monkeypatch.setitem(sys.modules, "e3nn_jax", None)
    with pytest.raises(
        MissingLibraryError, match=r"e3nn_jax.*\n *pip install \"jno-lora\[e3nn\]\""
    ):
        rotation("1o", "1o")
