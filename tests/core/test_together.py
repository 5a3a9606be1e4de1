"""Many layers computed by the programs that they share: each as if it was alone."""

import dataclasses
import enum
import operator

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jno.lora import apply_lora, merge_lora, unwrap_lora
from jno.lora._compute import call_compiled
from jno.lora.extending import static_key

from .toys import ToyConv, ToyLinear, shaken


def scaled(factor, layer, number):
    return {"layer": eqx.tree_at(lambda m: m.weight, layer, factor * layer.weight), "n": number}


MANY = 70


def results(function, shared, items):
    return [call_compiled(function, *shared, *item) for item in items]


def linears(number, getkey, inputs=3, outputs=2):
    make = eqx.filter_vmap(lambda key: eqx.nn.Linear(inputs, outputs, key=key))
    stack = make(jax.random.split(getkey(), number))
    return [jax.tree.map(operator.itemgetter(k), stack) for k in range(number)]


def test_each_gets_what_it_would_get_alone_in_any_company(getkey):
    layers = linears(MANY + 3, getkey)
    items = [(layer, np.asarray(k, np.uint32)) for k, layer in enumerate(layers)]

    def draw(key, layer, number):
        noise = jax.random.normal(jax.random.fold_in(key, number), layer.weight.shape)
        return jnp.sum(layer.weight @ noise.T) + noise

    key = getkey()
    everything = results(draw, (key,), items)
    some = results(draw, (key,), items[5:1:-1])
    (one,) = results(draw, (key,), items[-1:])
    np.testing.assert_array_equal(some, everything[5:1:-1])
    np.testing.assert_array_equal(one, everything[-1])
    for item, result in zip(items, everything, strict=True):
        np.testing.assert_allclose(result, draw(key, *item), rtol=1e-5)


def test_a_signature_is_traced_once_for_any_number_of_layers(getkey):
    traces = []

    def counted(*args):
        traces.append(None)
        return scaled(*args)

    few = [(layer, 7) for layer in linears(3, getkey)]
    for item, result in zip(few, results(counted, (2.0,), few), strict=True):
        np.testing.assert_array_equal(result["layer"].weight, 2 * item[0].weight)
        assert result["layer"].bias is item[0].bias and result["n"] == 7
    after_few = len(traces)
    results(counted, (2.0,), [(layer, 7) for layer in linears(MANY + 1, getkey)])
    assert len(traces) == after_few <= 3


def test_signatures_are_told_apart(getkey):
    one, two = linears(2, getkey), linears(2, getkey, inputs=4)
    items = [(one[0], 1), (two[0], 1), (one[1], 1.0), (two[1], True)]
    found = results(scaled, (3.0,), items)
    for (layer, number), result in zip(items, found, strict=True):
        np.testing.assert_array_equal(result["layer"].weight, 3 * layer.weight)
        assert type(result["n"]) is type(number)


class Setting(enum.IntEnum):
    ONE = 1


@dataclasses.dataclass(frozen=True)
class Frozen:
    value: object


@pytest.mark.parametrize("inside", [lambda x: x, lambda x: (x, 2), lambda x: [x], Frozen])
def test_static_fields_that_are_equal_but_of_other_types_have_keys_of_their_own(inside):
    class Holder(eqx.Module):
        value: object = eqx.field(static=True)

    trees = [{"a": Holder(inside(value))} for value in (1, 1.0, True, Setting.ONE, 0.0, -0.0)]
    keys = [static_key(jax.tree.structure(tree)) for tree in trees]
    assert len({*keys}) == len(keys)
    assert static_key(jax.tree.structure({"a": Holder(inside(2))})) == keys[0]


def test_no_argument_is_copied_and_no_two_results_share_a_buffer(getkey):
    def wrapped(layer):
        return {"layer": layer, "bias": layer.bias, "extra": jnp.zeros(3)}

    layer = eqx.nn.Linear(400, 300, key=getkey())
    (result,) = results(wrapped, (), [(layer,)])
    assert result["layer"] is layer and result["bias"] is layer.bias

    def made(layer):
        return [jnp.zeros(2), jnp.zeros(2), layer.weight + 1, jnp.copy(layer.weight + 1)]

    arrays = jax.tree.leaves(results(made, (), [(layer,) for layer in linears(3, getkey)]))
    assert len({array.unsafe_buffer_pointer() for array in arrays}) == len(arrays) == 12
    jax.block_until_ready(jax.jit(lambda xs: [x * 2 for x in xs], donate_argnums=0)(arrays))


@pytest.mark.parametrize(
    ("function", "value"),
    [(lambda x: jax.random.fold_in(x, 1), jax.random.key(0)), (lambda x: x * 2, jnp.asarray(3))],
    ids=["key", "weak"],
)
def test_keys_and_weak_types_stay_what_they_are(function, value):
    found, expected = call_compiled(function, value), function(value)
    assert found.dtype == expected.dtype and jnp.all(found == expected)
    assert getattr(found, "weak_type", None) == getattr(expected, "weak_type", None)


def test_a_function_that_fails_under_tracing_is_called_uncompiled(getkey):
    calls = []

    def moody(layer):
        calls.append(layer)
        if len(calls) == 1:
            raise RuntimeError("not the first time")
        return layer.weight + 1

    def corner(layer):  # needs values
        return float(layer.weight[0, 0])

    items = [(layer,) for layer in linears(3, getkey)]
    assert results(corner, (), items) == [corner(*item) for item in items]
    for (layer,), result in zip(items, results(moody, (), items), strict=True):
        np.testing.assert_array_equal(result, layer.weight + 1)


def test_layers_on_a_device_get_their_adapters_there(getkey):
    device = jax.devices()[3]
    layers = [*linears(2, getkey), eqx.nn.Conv1d(2, 2, 3, key=getkey())]
    there = jax.device_put(layers[1:], device)
    key = jax.device_put(getkey(), jax.devices()[5])
    model = apply_lora([layers[0], *there], 1, key=key, wrapper=[ToyLinear, ToyConv])
    for adapter in model[1:]:
        assert {device} == set.union(*(x.devices() for x in jax.tree.leaves(adapter)))
    for plain in (merge_lora(shaken(model)), unwrap_lora(model)):
        assert all(x.devices() == {device} for x in jax.tree.leaves(plain[1:]))
