"""A bank with adapters of several matrices: one state for each slot, at one rank."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from zoo_cases import perturb

from jno.lora import Net, SelectionError, extract_adapters, swap_adapters
from jno_lora_bank import AdapterBank
from jno_lora_foundax import (
    BottleneckLinear,
    CPSpectral,
    GainSpectral,
    LoRASpectral,
    ModeWeights,
    rsLoRASpectral,
)


class Layer(eqx.Module):
    w: jax.Array

    def __call__(self, x, *, key=None):
        modes = jnp.einsum("xi,xio->xo", jnp.fft.rfft(x, axis=0)[:4], self.w)
        return jnp.fft.irfft(modes, len(x), axis=0)


def declared(cls):
    class Declared(cls):
        @classmethod
        def mode_weights(cls, leaf):
            known = isinstance(leaf, Layer)
            return {"w": ModeWeights(("w",), "xio", lambda n: np.arange(n[0]))} if known else None

    return Declared


CLASSES = {cls: declared(cls) for cls in (LoRASpectral, rsLoRASpectral, CPSpectral, GainSpectral)}


@pytest.fixture(scope="module")
def model():
    re, im = jr.normal(jr.key(0), (2, 4, 3, 4))
    return eqx.nn.Sequential([Layer(jax.lax.complex(re, im)), eqx.nn.Lambda(jnp.tanh)])


def set_of(model, cls, seed, rank=1, **options):
    net = Net(model, key=jr.key(seed)).freeze().lora(rank, 3.0, wrapper=cls, options=options)
    return extract_adapters(perturb(net.module, 0.3, seed))


def expected(model, sets, names, xs):
    models = [model if name is None else swap_adapters(model, sets[name]) for name in names]
    return jnp.stack([adapted(x) for adapted, x in zip(models, xs, strict=True)])


@pytest.mark.parametrize("cls", CLASSES.values(), ids=[cls.__name__ for cls in CLASSES])
def test_each_example_uses_its_adapter(cls, model):
    xs = jr.normal(jr.key(2), (4, 8, 3))
    sets = {name: set_of(model, cls, seed, seed + 1) for seed, name in enumerate("ab")}
    bank = AdapterBank(model, {"a": sets["a"]}, slots=2)
    bank.add(sets["b"], "b")  # of a higher rank
    names = ["b", None, "a", "b"]
    ys = bank.run(names, xs)
    np.testing.assert_allclose(ys, expected(model, sets, names, xs), atol=2e-5)
    of_base = eqx.filter_jit(lambda model, xs: jax.vmap(model)(xs))(model, xs)
    assert jnp.array_equal(bank.run([None] * 4, xs), of_base)
    assert eqx.tree_equal(bank.adapters("a"), sets["a"])
    slot = bank.slots["b"]
    bank.remove("b")
    assert jnp.isnan(bank(xs[0], slot)).all()
    np.testing.assert_allclose(bank(xs[2], "a"), ys[2], atol=2e-5)


def test_a_bank_refuses_adapters_of_another_form(model):
    LoRA, CP = CLASSES[LoRASpectral], CLASSES[CPSpectral]
    bank = AdapterBank(model, {"a": set_of(model, LoRA, 0)})
    before = bank.snapshot()
    with pytest.raises(SelectionError, match=r"arrays of other shapes .* such as `bands`"):
        bank.add(set_of(model, LoRA, 1, bands={2: 1}), "b")
    with pytest.raises(SelectionError, match=r"needs slots of another kind.*AdapterBank"):
        bank.add(set_of(model, CP, 1), "b")
    with pytest.raises(SelectionError, match=r"Declared at .* is not just a product.*Net"):
        bank.optimiser(lambda rate: None, {"a": 1e-3})
    assert eqx.tree_equal(bank.snapshot().model, before.model)


def test_bottlenecks_have_slots_as_well():
    model = {"layer": eqx.nn.Linear(3, 4, key=jr.key(0))}
    sets = {name: set_of(model, BottleneckLinear, seed, seed + 1) for seed, name in enumerate("ab")}
    bank, xs = AdapterBank(model, sets), jr.normal(jr.key(1), (3, 3)).at[1].set(jnp.inf)
    call = lambda model, x: model["layer"](x)  # noqa: E731
    ys = bank.run(["b", None, "a"], xs, function=call)
    alone = [call(swap_adapters(model, sets[name]), x) for name, x in (("b", xs[0]), ("a", xs[2]))]
    np.testing.assert_allclose(ys[0], alone[0], atol=1e-5)
    np.testing.assert_allclose(ys[2], alone[1], atol=1e-5)
    np.testing.assert_array_equal(ys[1], call(model, xs[1]))  # infinite, and not NaN
