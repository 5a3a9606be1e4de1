"""Somebody else's adapter with factors, a gain and a shift, known by its `low_rank_form` alone."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from zoo_cases import perturb

from jno.lora import (
    LowRankForm,
    MatrixAdapter,
    Net,
    SelectionError,
    apply_lora,
    extract_adapters,
    merge_lora,
    read_adapters,
    save_adapters,
    swap_adapters,
)
from jno_lora_bank import AdapterBank
from jno_lora_combine import sum_adapters, to_lora
from jno_lora_conditional.testing import check_conditional
from jno_lora_quantized import dequantize, quantize
from jno_lora_testing import run_checks, standard_cases

MODEL = eqx.nn.MLP(6, 4, 8, 1, key=jr.key(0))
XS = jr.normal(jr.key(1), (4, 6))


def wide(weight):
    return jnp.asarray(weight, max(weight.dtype, jnp.dtype(jnp.float32), key=lambda d: d.itemsize))


def with_array(layer, name, array):
    array = array.astype(getattr(layer, name).dtype)
    return eqx.tree_at(lambda m: getattr(m, name), layer, array)


class Volume(MatrixAdapter):
    """`W' = diag(1 + volume) (W + up down)`, and `b' = b + offset`."""

    adapter_fields = ("down", "up", "volume", "offset")
    base: eqx.nn.Linear
    down: jax.Array
    up: jax.Array
    volume: jax.Array
    offset: jax.Array | None
    rank: int = eqx.field(static=True)

    @classmethod
    def applies_to(cls, leaf):
        return type(leaf) is eqx.nn.Linear

    @classmethod
    def stack_ndim(cls, leaf):
        return leaf.weight.ndim - 2

    @classmethod
    def matrix(cls, layer):
        return wide(layer.weight)

    def __init__(self, base, rank, *, key):
        W = self.matrix(base)
        outputs, inputs = W.shape
        self.base, self.rank = base, rank
        self.down = jr.normal(key, (rank, inputs), W.dtype) / inputs**0.5
        self.up = jnp.zeros((outputs, rank), W.dtype)
        self.volume = jnp.zeros(outputs, W.dtype)
        self.offset = None if base.bias is None else jnp.zeros(outputs, W.dtype)

    def low_rank_form(self):
        return LowRankForm(self.down, self.up, gain=1 + self.volume, shift=self.offset)

    def __call__(self, x):
        down, up, volume = (p.astype(x.dtype) for p in (self.down, self.up, self.volume))
        y = (1 + volume) * (self.base.weight @ x + up @ (down @ x))
        if self.offset is None:
            return y
        return y + self.base.bias + self.offset.astype(x.dtype)

    def merge(self):
        gain = (1 + self.volume)[:, None]
        weight = gain * (self.matrix(self.base) + self.up @ self.down)
        layer = with_array(self.base, "weight", weight)
        if self.offset is None:
            return layer
        return with_array(layer, "bias", wide(layer.bias) + self.offset)


def adapters_of(wrapper=Volume, seed=0, rank=2, model=MODEL, **options):
    adapted = apply_lora(model, rank, key=jr.key(seed), wrapper=wrapper, options=options)
    return extract_adapters(perturb(adapted, 0.3, seed))


def of_each(model, sets, xs=XS):
    return jnp.stack([swap_adapters(model, s)(x) for s, x in zip(sets, xs, strict=True)])


@pytest.mark.parametrize("check", ["matrix", "low-rank-form", "bank"])
def test_the_adapter_is_right(check):
    (result,) = run_checks(standard_cases(Volume)[0], [check])
    assert result.error is None and result.not_applicable is None


def test_it_has_a_slot_beside_adapters_of_the_zoo(tmp_path):
    path = tmp_path / "volume.safetensors"
    save_adapters(adapters_of(seed=1, rank=3), path)
    sets = [
        adapters_of(),
        adapters_of("lora"),
        read_adapters(path, wrappers=[Volume]),
        adapters_of("dora"),
    ]
    bank = AdapterBank(MODEL, dict(zip("abcd", sets, strict=True)))
    np.testing.assert_allclose(bank.run(["a", "b", "c", "d"], XS), of_each(MODEL, sets), atol=1e-5)
    assert eqx.tree_equal(bank.adapters("a"), sets[0])


def test_it_has_slots_in_a_stack():
    make = eqx.filter_vmap(lambda key: eqx.nn.Linear(6, 6, key=key))

    class Stack(eqx.Module):
        layers: eqx.nn.Linear

        def __call__(self, x):
            arrays, static = eqx.partition(self.layers, eqx.is_array)
            step = lambda x, layer: (jnp.tanh(eqx.combine(layer, static)(x)), None)  # noqa: E731
            return jax.lax.scan(step, x, arrays)[0]

    stack = Stack(make(jr.split(jr.key(2), 3)))
    sets = [adapters_of(model=stack, seed=seed) for seed in range(4)]
    bank = AdapterBank(stack, dict(zip("abcd", sets, strict=True)))
    np.testing.assert_allclose(bank.run(["a", "b", "c", "d"], XS), of_each(stack, sets), atol=1e-5)


def test_it_has_slots_around_codes():
    coded = quantize(MODEL, "int8")
    sets = [adapters_of(seed=seed) for seed in range(4)]
    ys = AdapterBank(coded, dict(zip("abcd", sets, strict=True))).run(["a", "b", "c", "d"], XS)
    np.testing.assert_allclose(ys, of_each(dequantize(coded), sets), atol=1e-5)


def test_it_adds_up_in_a_net():
    net = Net(MODEL, key=jr.key(0)).freeze()
    for name, wrapper in (("a", Volume), ("b", Volume), ("c", "lora")):
        net.lora(2, wrapper=wrapper).add_adapter(name).deactivate()
    net.activate("a", "b", "c", weights={"b": -0.5}, train=["a"])
    model = perturb(net.module, 0.3)
    np.testing.assert_allclose(
        jax.vmap(model)(XS), jax.vmap(merge_lora(model))(XS), rtol=1e-5, atol=1e-5
    )
    sets = {"a": adapters_of(), "b": adapters_of(seed=1)}
    changes = [merge_lora(swap_adapters(MODEL, s)).layers[0] for s in sets.values()]
    summed = merge_lora(sum_adapters(MODEL, sets, weights={"b": -0.5})).layers[0]
    for name in ("weight", "bias"):
        W, A, B = (getattr(layer, name) for layer in (MODEL.layers[0], *changes))
        expected = W + (A - W) - 0.5 * (B - W)
        np.testing.assert_allclose(getattr(summed, name), expected, rtol=1e-5, atol=1e-5)


class Plain(Volume):
    """Without a gain, so that sums have a form as well."""

    def low_rank_form(self):
        return super().low_rank_form()._replace(gain=None)

    def __init__(self, base, rank, *, key):
        super().__init__(base, rank, key=key)
        self.volume = jnp.zeros(0, self.up.dtype)

    def __call__(self, x):
        return self.merge()(x)

    def merge(self):
        zeros = jnp.zeros(len(self.up), self.up.dtype)
        return Volume.merge(eqx.tree_at(lambda a: a.volume, self, zeros))


def test_a_sum_without_gains_has_one_slot():
    sets = {"a": adapters_of(Plain), "b": adapters_of("lora", bias="train")}
    summed = sum_adapters(MODEL, sets, weights={"b": -0.5})
    form = summed.layers[0].low_rank_form()
    assert form.A.shape == (4, 6) and form.gain is None
    bank = AdapterBank(MODEL, {"both": extract_adapters(summed)})
    np.testing.assert_allclose(bank(XS[0], "both"), summed(XS[0]), rtol=1e-5, atol=1e-5)
    assert eqx.tree_equal(bank.adapters("both"), extract_adapters(summed))


def test_it_is_a_function_of_a_parameter():
    check_conditional(Volume, MODEL.layers[0], XS[0])


def test_it_becomes_lora():
    free = eqx.nn.MLP(6, 4, 8, 1, use_bias=False, use_final_bias=False, key=jr.key(0))
    adapted = swap_adapters(free, adapters_of(model=free))
    np.testing.assert_allclose(to_lora(adapted, rank=8)[0](XS[0]), adapted(XS[0]), atol=1e-5)


class Turned(Volume):
    """Says another matrix of a square layer than the layer kinds of the zoo read."""

    @classmethod
    def matrix(cls, layer):
        return super().matrix(layer).T


def test_no_slot_is_for_another_matrix():
    # Of zeros, which are equal to their transpose.
    square = eqx.tree_at(lambda m: m.weight, eqx.nn.Linear(4, 4, key=jr.key(0)), jnp.zeros((4, 4)))
    with pytest.raises(SelectionError, match=r"a Turned, which is not of a layer kind"):
        AdapterBank([square], {"a": adapters_of(Turned, model=[square])})
