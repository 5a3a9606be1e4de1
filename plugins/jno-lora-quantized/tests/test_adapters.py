"""Adapters on quantised layers: as on the dequantised model, but for merges, which are refused."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from tests.core.toys import ToyLinear
from zoo_cases import perturb

from jno.lora import (
    JnoLoraWarning,
    WrapperError,
    apply_lora,
    extract_adapters,
    load_adapters,
    lora_report,
    lora_trainable_filter,
    merge_lora,
    plan_lora,
    save_adapters,
    unwrap_lora,
)
from jno_lora_combine import sum_adapters
from jno_lora_quantized import dequantize, quantize


def close(got, expected, tolerance=1e-5):
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)


def make_model(key):
    first, second = jr.split(key)
    parts = [eqx.nn.Linear(6, 8, key=first), eqx.nn.Lambda(jnp.tanh)]
    return eqx.nn.Sequential([*parts, eqx.nn.Linear(8, 5, key=second)])


def moved(model):
    return perturb(model, 0.2)


def adapted_pair(key, scheme, **options):
    base = quantize(make_model(key), scheme)
    return [
        moved(apply_lora(model, 3, key=jr.key(1), **options)) for model in (base, dequantize(base))
    ]


@pytest.mark.parametrize(
    ("method", "scheme"),
    [("lora", "nf4"), pytest.param("dora", "nf4", marks=pytest.mark.slow), ("oft", "int8")],
)
def test_as_on_the_dequantised_model(getkey, scheme, method):
    coded, plain = adapted_pair(getkey(), scheme, wrapper=method)
    x = jr.normal(getkey(), (6,))
    close(coded(x), plain(x))
    slopes = []
    for model in (coded, plain):
        trained, frozen = eqx.partition(model, lora_trainable_filter(model))

        def loss(trained, frozen=frozen):
            return jnp.sum(jnp.sin(eqx.combine(trained, frozen)(x)))

        slopes.append(jax.tree.leaves(eqx.filter_jit(jax.grad(loss))(trained)))
    jax.tree.map(close, *slopes)
    close(merge_lora(dequantize(coded))(x), coded(x))
    close(coded.layers[0].weight, plain.layers[0].weight, 1e-6)
    assert unwrap_lora(coded).layers[0].weight == coded.layers[0].base.weight


@pytest.mark.parametrize("wrapper", ["lora", ToyLinear])
def test_merging_refuses(getkey, wrapper):
    coded, plain = adapted_pair(getkey(), "nf4", wrapper=wrapper)
    with pytest.raises(WrapperError, match=r"'layers/0': (.|\n)*merge_lora\(dequantize"):
        merge_lora(coded)
    if wrapper == "lora":
        with pytest.raises(WrapperError, match="dequantize"):
            coded.layers[0].merge()
    merged = eqx.filter((merge_lora(dequantize(coded)), merge_lora(plain)), eqx.is_array)
    jax.tree.map(lambda got, expected: close(got, expected, 1e-6), *merged)


@pytest.mark.parametrize("method", ["pissa", "olora"])
def test_a_start_that_changes_the_weight_refuses(getkey, method):
    model = make_model(getkey())
    with pytest.raises(WrapperError, match=r"layers/0(.|\n)*quantize\(apply_lora"):
        apply_lora(quantize(model), 2, key=getkey(), wrapper=method)
    # The other way round is QPiSSA.
    adapted = quantize(apply_lora(model, 2, 2.0, key=getkey(), wrapper=method), "int8")
    x = jr.normal(getkey(), (6,))
    close(adapted(x), dequantize(adapted)(x))
    close(adapted(x), model(x), 0.05)
    with pytest.raises(WrapperError, match=r"Codes cannot give(.|\n)*loftq"):
        unwrap_lora(adapted)


def test_reports_count_coded_weights(getkey):
    model = make_model(getkey())
    plain, coded = (apply_lora(m, 2, key=getkey()) for m in (model, quantize(model)))
    counts = [
        [(row.trainable, row.total) for row in report] + [(report.trainable, report.total)]
        for report in map(lora_report, (plain, coded))
    ]
    assert counts[0] == counts[1]
    assert {row.status for row in plan_lora(quantize(model), 2)} == {"wrapped"}
    report = lora_report(moved(coded), merge_error=True)
    assert [row.merge_error for row in report] == [None, None]


@pytest.mark.parametrize(
    ("saved_from", "loaded_into"), [("float32", "nf4"), ("nf4", "float32"), ("int8", "nf4")]
)
def test_files_of_adapters_load_both_ways(getkey, tmp_path, saved_from, loaded_into):
    model, file, x = make_model(getkey()), tmp_path / "adapters.safetensors", jnp.ones(6)
    bases = {"float32": model, "nf4": quantize(model), "int8": quantize(model, "int8")}
    adapted = moved(apply_lora(bases[saved_from], 2, key=getkey()))
    save_adapters(adapted, file)
    loaded = load_adapters(bases[loaded_into], file)
    got, expected = (eqx.filter(m, lora_trainable_filter(m)) for m in (loaded, adapted))
    assert eqx.tree_equal(jax.tree.leaves(got), jax.tree.leaves(expected))
    close(loaded(x), dequantize(loaded)(x))
    if saved_from == "nf4":  # a file knows the codes of its base
        load_adapters(bases["nf4"], file)
        other = eqx.tree_at(lambda m: m.layers[0].weight, model, replace_fn=lambda W: W + 1)
        with pytest.warns(JnoLoraWarning, match="layers/0"):
            load_adapters(quantize(other), file)


class Scaled(eqx.nn.Linear):
    """A look-alike."""

    def __call__(self, x, *, key=None):
        return 2 * (self.weight @ x)


CONV = (lambda key: eqx.nn.Conv2d(4, 8, 3, groups=2, key=key), (jnp.ones((4, 5, 5)),))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrapper", "make", "inputs"),
    [
        ("DoRAConv", *CONV),
        ("OFTConv", *CONV),
        (
            "LoRAConvTranspose",
            lambda key: eqx.nn.ConvTranspose1d(4, 5, 3, stride=2, key=key),
            (jnp.ones((4, 6)),),
        ),
        ("DoRAEmbedding", lambda key: eqx.nn.Embedding(11, 6, key=key), (3,)),
        (
            "lora-attention",
            lambda key: eqx.nn.MultiheadAttention(2, 8, key=key),
            3 * (jr.normal(jr.key(0), (3, 8)),),
        ),
        ("LoRALinear", lambda key: Scaled(6, 4, key=key), (jnp.ones(6),)),
    ],
)
def test_other_layers_compute_as_their_dequantised_and_merged_layers(getkey, wrapper, make, inputs):
    coded = moved(apply_lora(quantize(make(getkey())), 2, key=jr.key(1), wrapper=wrapper))
    close(coded(*inputs), dequantize(coded)(*inputs))
    close(coded(*inputs), merge_lora(dequantize(coded))(*inputs), 1e-4)


def test_sums_add_products_and_refuse_other_changes():
    model, x = quantize(make_model(jr.key(0)), "int8"), jnp.linspace(-1.0, 1.0, 6)
    names = {"a": "lora", "b": "rslora", "dora": "dora"}
    adapted = {
        name: moved(apply_lora(model, 2, key=jr.key(1), wrapper=cls, target="^layers/0"))
        for name, cls in names.items()
    }
    sets = {name: extract_adapters(a) for name, a in adapted.items()}
    y = model.layers[0](x)
    a, b = (adapted[name].layers[0](x) - y for name in "ab")
    total = sum_adapters(model, {name: sets[name] for name in "ab"}, weights={"b": -0.5})
    close(total.layers[0](x), y + a - 0.5 * b, 1e-4)
    summed = sum_adapters(model, sets)
    with pytest.raises(WrapperError, match="quantised"):
        summed.layers[0](x)
