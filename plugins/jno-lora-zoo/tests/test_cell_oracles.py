"""Cells in double precision, against NumPy: the law on `[weight_ih | weight_hh]`, and the gates.

Both merged weights, the next state, and every single derivative in the adapter's arrays, the input
and the state; see `zoo_cases.oracle`, and `zoo_cases.laws` for the methods' laws, written from
their papers.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.pairs import pairwise
from zoo_cases import METHODS, assert_close, cast_floats
from zoo_cases.oracle import VALUE, Oracle

import jno_lora_zoo

INPUTS, HIDDEN, RANK = 3, 2, 4


class Odd(eqx.nn.GRUCell):
    """Does more than its parent: it doubles the next state."""

    def __call__(self, input, hidden, *, key=None):
        return 2.0 * super().__call__(input, hidden, key=key)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def gru(cell, W, x, h):
    """Reset, update and new state, of which the reset gate acts behind the bias `bias_n`.

    `r = s(W_ir x + b_r + W_hr h)`, `z = s(W_iz x + b_z + W_hz h)`,
    `n = tanh(W_in x + b_n + r (W_hn h + bias_n))`, `h' = (1 - z) n + z h`.
    """
    of_input, of_state = W[:, :INPUTS] @ x, W[:, INPUTS:] @ h
    if cell.bias is not None:
        of_input = of_input + np.asarray(cell.bias)
    bias_n = 0.0 if cell.bias_n is None else np.asarray(cell.bias_n)
    (i_r, i_z, i_n), (h_r, h_z, h_n) = of_input.reshape(3, -1), of_state.reshape(3, -1)
    reset, update = sigmoid(i_r + h_r), sigmoid(i_z + h_z)
    new = np.tanh(i_n + reset * (h_n + bias_n))
    return (1 - update) * new + update * h


def lstm(cell, W, x, state):
    """Input, forget, cell and output gates of `W_i x + W_h h + b`.

    `c' = s(f) c + s(i) tanh(g)`, `h' = s(o) tanh(c')`.
    """
    h, c = state
    z = W[:, :INPUTS] @ x + W[:, INPUTS:] @ h
    if cell.bias is not None:
        z = z + np.asarray(cell.bias)
    i, f, g, o = z.reshape(4, -1)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


# name: (cell, what it computes of the input and the state)
CELLS = {
    "gru": (lambda key: eqx.nn.GRUCell(INPUTS, HIDDEN, key=key), gru),
    "lstm": (lambda key: eqx.nn.LSTMCell(INPUTS, HIDDEN, key=key), lstm),
    "gru_without_bias": (lambda key: eqx.nn.GRUCell(INPUTS, HIDDEN, False, key=key), gru),
    "lstm_without_bias": (lambda key: eqx.nn.LSTMCell(INPUTS, HIDDEN, False, key=key), lstm),
    "subclass": (lambda key: Odd(INPUTS, HIDDEN, key=key), lambda *a: 2 * gru(*a)),
}


def step(name):
    """An input, and a state of one part (GRU) or two (LSTM)."""
    x, h, c = (np.random.default_rng(n).normal(size=(INPUTS, HIDDEN, HIDDEN)[n]) for n in range(3))
    return x, (h, c) if name.startswith("lstm") else h


def matrix(cell):
    weights = [np.asarray(w).astype(np.float64) for w in (cell.weight_ih, cell.weight_hh)]
    return np.concatenate(weights, axis=1)


def oracle(method, name):
    make, compute = CELLS[name]
    return Oracle(
        method,
        getattr(jno_lora_zoo, f"{method}Recurrent"),
        make(jax.random.key(3)),
        RANK,
        step(name),
        lambda cell, W, at, *arguments: compute(cell, W, *arguments),
        matrix=matrix,
    )


everywhere = pytest.mark.parametrize(
    ("method", "name"),
    # The cell itself is called with the merged weights: its kind does not depend on the method.
    [
        *pairwise([(method, name) for name in ("gru", "lstm") for method in METHODS]),
        *(("DoRA", name) for name in CELLS if name not in ("gru", "lstm")),
    ],
    scope="module",
)


@everywhere
def test_values_and_every_derivative_are_those_of_numpy(method, name):
    oracle(method, name).check()


@pytest.mark.parametrize("name", CELLS)
def test_the_gates_are_what_equinox_computes(name):
    # The oracle must not be wrong in the same way: it is right for cells without adapters.
    make, compute = CELLS[name]
    with jax.enable_x64(True):
        cell = cast_floats(make(jax.random.key(3)), jnp.float64)
        expected = cell(*jax.tree.map(jnp.asarray, step(name)))
        actual = compute(cell, matrix(cell), *step(name))
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert_close(one, other, VALUE)
