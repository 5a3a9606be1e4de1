"""Cells in real models: scanned, stacked, claimed or not, and merged outside the scan."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import pytest
from zoo_cases import perturb

import jno_lora_zoo
from jno.lora import (
    WrapperError,
    apply_lora,
    calibrate,
    lora_trainable_filter,
    merge_lora,
    plan_lora,
    to_lora,
)
from jno_lora_zoo import CorDA, LoRARecurrent, RecurrentLayer

METHODS = ("LoRA", "DoRA", "PiSSA", "LoKr")


class Reader(eqx.Module):
    """A sequence in, one vector out."""

    cell: eqx.nn.GRUCell
    head: eqx.nn.Linear

    def __init__(self, key):
        first, second = jax.random.split(key)
        self.cell = eqx.nn.GRUCell(3, 5, key=first)
        self.head = eqx.nn.Linear(5, 2, key=second)

    def __call__(self, xs):
        def step(hidden, x):
            return self.cell(x, hidden), None

        return self.head(jax.lax.scan(step, jnp.zeros(self.cell.hidden_size), xs)[0])


@pytest.fixture(scope="module")
def xs():
    return jax.random.normal(jax.random.key(1), (6, 3))


@pytest.mark.parametrize("method", METHODS)
def test_merging_before_the_scan_gives_the_same_values_and_gradients(method, xs, getkey):
    wrappers = getattr(jno_lora_zoo, f"{method}Recurrent")
    model = perturb(apply_lora(Reader(getkey()), 2, 3.0, key=getkey(), wrapper=wrappers))
    trainable, frozen = eqx.partition(model, lora_trainable_filter(model))

    def loss(trainable, prepare):
        return jnp.sum(jnp.sin(prepare(eqx.combine(trainable, frozen))(xs)))

    inside, outside = (
        jax.value_and_grad(loss)(trainable, prepare) for prepare in (lambda m: m, merge_lora)
    )
    for one, other in zip(jax.tree.leaves(inside), jax.tree.leaves(outside), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=1e-6)


def test_the_merge_is_not_repeated_in_each_step_of_a_scan(xs, getkey):
    model = apply_lora(Reader(getkey()), 2, 3.0, key=getkey(), wrapper=LoRARecurrent)
    arrays, static = eqx.partition(model, eqx.is_array)

    def merges_in_scan(prepare):
        jaxpr = jax.make_jaxpr(lambda a: prepare(eqx.combine(a, static))(xs))(arrays)
        (scan,) = (eqn for eqn in jaxpr.jaxpr.eqns if eqn.primitive.name == "scan")
        text = str(scan.params["jaxpr"])
        return "15,8" in text  # the two weights side by side

    assert merges_in_scan(lambda m: m) and not merges_in_scan(merge_lora)


def test_biases_are_the_cells_own(getkey):
    cell = eqx.nn.LSTMCell(3, 2, key=getkey())
    assert perturb(LoRARecurrent(cell, 2, 4.0, key=getkey())).merge().bias is cell.bias


def test_cells_are_adapted_by_name_by_variant_and_by_auto_only(getkey):
    model = Reader(getkey())
    chosen = {
        str(wrappers): [row.path for row in plan_lora(model, 2, wrapper=wrappers).wrapped]
        for wrappers in (None, "LoRARecurrent", "dora", "dora-recurrent", "auto")
    }
    assert chosen == {
        "None": ["head"],
        "LoRARecurrent": ["cell"],
        "dora": ["head"],
        "dora-recurrent": ["cell"],
        "auto": ["cell", "head"],
    }


def test_a_stack_of_stacks_is_adapted_cell_by_cell(getkey):
    keys = jax.random.split(getkey(), (2, 3))
    make = eqx.filter_vmap(eqx.filter_vmap(lambda key: eqx.nn.GRUCell(3, 2, key=key)))
    stack = make(keys)
    assert RecurrentLayer.stack_ndim(stack) == 2
    adapted = apply_lora(stack, 2, 3.0, key=getkey(), wrapper=LoRARecurrent)
    assert adapted.lora_A.shape == (2, 3, 2, 5)
    assert eqx.tree_equal(merge_lora(adapted), stack)
    one, other = adapted.lora_A[0, 0], adapted.lora_A[1, 2]
    assert not jnp.allclose(one, other)


class Odd(eqx.nn.GRUCell):
    def __call__(self, input, hidden, *, key=None):
        return 2.0 * super().__call__(input, hidden, key=key)


def test_a_subclass_is_called_as_it_is(getkey):
    cell = Odd(3, 2, key=getkey())
    x, hidden = jax.random.normal(getkey(), (3,)), jnp.ones(2)
    wrapper = LoRARecurrent(cell, 1, 1.0, key=getkey())
    np.testing.assert_allclose(wrapper(x, hidden), cell(x, hidden), rtol=1e-6)
    # After training: twice what the parent computes with both weights adapted by hand.
    wrapper = perturb(wrapper)
    update = wrapper.lora_B @ wrapper.lora_A
    plain = eqx.tree_at(
        lambda c: (c.weight_ih, c.weight_hh),
        cell,
        (cell.weight_ih + update[:, :3], cell.weight_hh + update[:, 3:]),
    )
    expected = 2 * eqx.nn.GRUCell.__call__(plain, x, hidden)
    np.testing.assert_allclose(wrapper(x, hidden), expected, rtol=1e-5, atol=1e-6)
    assert not np.allclose(wrapper(x, hidden), cell(x, hidden), rtol=1e-2)


@pytest.mark.parametrize(
    "leaf",
    [
        None,
        jnp.ones((6, 2)),
        eqx.nn.Linear(3, 2, key=jax.random.key(0)),
        eqx.tree_at(
            lambda c: c.weight_hh, eqx.nn.GRUCell(3, 2, key=jax.random.key(0)), jnp.ones((4, 2))
        ),
        jtu.tree_map(lambda x: x.astype(jnp.int32), eqx.nn.GRUCell(3, 2, key=jax.random.key(0))),
    ],
)
def test_other_things_are_not_claimed(leaf):
    assert not LoRARecurrent.applies_to(leaf)


def test_a_plan_says_why_a_cell_is_not_claimed(getkey):
    cell = eqx.tree_at(lambda c: c.weight_hh, eqx.nn.GRUCell(3, 2, key=getkey()), jnp.ones((4, 2)))
    (row,) = plan_lora({"cell": cell}, 2, wrapper=LoRARecurrent)
    assert row.reason == (
        "its weights are (6, 3) and (4, 2), which do not fit 3 inputs and 2 units"
    )


class Measured(CorDA, RecurrentLayer):
    """Starts from the covariance of what a cell reads."""


class MeasuredGates(CorDA, RecurrentLayer):
    """Asks for the outputs of a matrix whose products a cell does not show."""

    needs = ("output_covariance",)


@pytest.mark.parametrize("make", [eqx.nn.GRUCell, eqx.nn.LSTMCell])
def test_the_inputs_of_a_cell_are_its_input_and_its_state(make, getkey):
    cell, x, h = make(3, 2, key=getkey()), jnp.arange(3.0), jnp.array([1.0, -2.0])
    state = h if make is eqx.nn.GRUCell else (h, jnp.ones(2))
    loss = lambda cell, x: sum(map(jnp.sum, jax.tree.leaves(cell(x, state))))  # noqa: E731
    found = calibrate(cell, [x], loss, wrapper=Measured)[""]["input_covariance"]
    read = np.array([0, 1, 2, 1, -2.0])
    np.testing.assert_allclose(found, np.outer(read, read), atol=1e-6)
    with pytest.raises(WrapperError, match="gates of a cell are not among its outputs"):
        calibrate(cell, [x], loss, wrapper=MeasuredGates)


def test_to_lora_finds_lora_for_cells(getkey):
    cell = eqx.nn.GRUCell(3, 2, key=getkey())
    model, _ = to_lora(apply_lora([cell], 2, key=getkey(), wrapper="dora-recurrent"), rank=2)
    assert type(model[0]) is LoRARecurrent
