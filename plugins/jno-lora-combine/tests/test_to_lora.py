"""Adapters made into plain LoRA, or without the directions whose gates are zero."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.core.gated_adapters import Gated
from tests.core.toys import Difference, ToyLinear, ToyScale
from zoo_cases.models import layers, relative, trained, update

from jno.lora import (
    JnoLoraWarning,
    MatrixAdapter,
    Net,
    Registry,
    SelectionError,
    WrapperError,
    apply_lora,
    extract_adapters,
    lora_trainable_filter,
    merge_lora,
)
from jno_lora_combine import adapter_effects, plot_adapters, shrink, to_lora

PRODUCTS = {"rslora": 2, "lora-xs": 2, "vera": 2, "pissa": 4}
OTHERS = ["dora", "lokr"]


def weights(model):
    """The weights of a plain model, in float64."""
    return {name: np.asarray(layer.weight, np.float64) for name, layer in model.items()}


def singular_values(plain, model, path):
    """The update of a layer as a matrix, or a stack of matrices, and its singular values."""
    exact = weights(merge_lora(model))[path] - weights(plain)[path]
    exact = exact.reshape(3, -1) if path == "convolution" else exact
    return exact, np.linalg.svd(exact, compute_uv=False)


@pytest.mark.parametrize("variant", [*PRODUCTS, *OTHERS])
def test_an_adapter_becomes_lora_that_computes_the_same(variant):
    plain = layers()
    plain.pop("stack")
    model = trained(plain, variant, 1)
    arguments = {"energy": 1.0} if variant in OTHERS else {}
    converted, report = to_lora(model, **arguments)
    assert [type(layer).__name__ for layer in converted.values()] == ["LoRAConv", "LoRALinear"]
    if variant in PRODUCTS:
        # As many as the matrices allow: they are 3 x 6 and 4 x 5.
        assert [row.rank for row in report] == [min(PRODUCTS[variant], 3), PRODUCTS[variant]]
    assert report.error < 1e-6
    expected, found = weights(merge_lora(model)), weights(merge_lora(converted))
    for name in expected:
        assert relative(found[name], expected[name]) < 2e-6
        assert np.allclose(converted[name].base.weight, plain[name].weight, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["dora", "pissa"])
def test_a_rank_keeps_the_best_and_the_report_says_what_is_lost(variant):
    plain, model = layers(), trained(layers(), variant, 1)
    converted, report = to_lora(model, rank=1)
    found = extract_adapters(converted)
    for row in report:
        exact, singular = singular_values(plain, model, row.path)
        best = np.linalg.norm(singular[..., 1:]) / np.linalg.norm(singular)
        assert row.rank == found[row.path].rank == 1
        assert float(row.error) == pytest.approx(best, rel=1e-3)
        assert relative(update(found[row.path]), exact) == pytest.approx(best, rel=1e-3)
        assert (row.former, row.wrapper) == (type(model[row.path]), type(converted[row.path]))
    # Energy chooses the smallest rank of each layer, and one for a stack.
    for row in to_lora(model, energy=0.9)[1]:
        _, singular = singular_values(plain, model, row.path)
        kept = np.cumsum(singular**2, axis=-1) / np.sum(singular**2, axis=-1, keepdims=True)
        if variant == "dora":  # the factors of PiSSA are known, and have few directions
            assert row.rank == np.max(1 + np.argmax(kept >= 0.9, axis=-1))
        assert float(row.error) <= np.sqrt(0.1)


def test_plain_lora_stays_as_it_is_unless_its_rank_is_too_large():
    model = trained(layers(), "lora", 1)
    converted, report = to_lora(model)
    assert all(converted[name] is model[name] for name in model) and report.error == 0
    smaller, report = to_lora(model, rank=1)
    assert {row.rank for row in report} == {1} and report.error > 0
    assert smaller["linear"].base.weight is model["linear"].base.weight
    plain = layers()
    assert to_lora(plain)[0] is plain


def test_an_adapter_that_has_learnt_nothing_becomes_one_that_changes_nothing():
    # DoRA's first weight is off by rounding, which is not taken for an update.
    plain = {"linear": layers()["linear"]}
    model = apply_lora(plain, 2, 1.0, key=jax.random.key(0), wrapper="dora")
    converted, report = to_lora(model, energy=0.99)
    assert [row.rank for row in report] == [1] and report.error == 0
    assert jnp.array_equal(merge_lora(converted)["linear"].weight, plain["linear"].weight)


def test_the_update_of_a_half_precision_layer_is_found_in_float32():
    plain = {"linear": layers(jnp.bfloat16)["linear"]}
    model = trained(plain, "dora", 1)
    converted, _ = to_lora(model, energy=1.0)
    assert converted["linear"].base.weight is plain["linear"].weight
    assert converted["linear"].lora_A.dtype == jnp.float32
    wide = jax.tree.map(lambda a: a.astype(jnp.float32) if eqx.is_inexact_array(a) else a, model)
    before, after, rounded = (
        weights(m)["linear"] for m in (plain, *map(merge_lora, (wide, model)))
    )
    assert relative(update(extract_adapters(converted)["linear"]), after - before) < 1e-5
    assert relative(rounded - before, after - before) > 1e-3


@pytest.mark.parametrize(("variant", "dtype"), [("vera", jnp.bfloat16), ("rslora", jnp.float16)])
def test_a_product_of_half_precision_is_taken_in_float32(variant, dtype):
    # With a scale that would round a factor in bfloat16, and overflow in float16.
    plain = {"linear": layers()["linear"]}
    model = trained(plain, variant, 1, alpha=300_001.0, options={"adapter_dtype": dtype})
    converted, report = to_lora(model)
    assert report.error == 0 and converted["linear"].lora_B.dtype == jnp.float32
    exact, _ = singular_values(plain, model, "linear")
    assert relative(update(extract_adapters(converted)["linear"]), exact) < 1e-5


def test_a_layer_in_a_norm_becomes_lora_in_a_norm(getkey):
    model = [eqx.nn.WeightNorm(eqx.nn.Linear(4, 3, key=getkey()))]
    model = trained(model, "dora-in-norm", 1)
    converted, _ = to_lora(model, energy=1.0)
    assert type(converted[0]).__name__ == "LoRAInNorm"
    x = jax.random.normal(getkey(), (4,))
    assert jnp.allclose(converted[0](x), model[0](x), atol=1e-5)


# --- what is refused


class ScalesBias(ToyScale):
    def merge(self):
        return eqx.tree_at(lambda m: m.bias, super().merge(), self.gain * self.base.bias)


class NeverMerges(ScalesBias):
    def merge(self):
        raise WrapperError("it has no weight to put the update into")


class NoProduct(ScalesBias):
    """Calls itself LoRA, but is not a product (as is the LoRA for spectral weights)."""

    variant = "lora"


class RaisesAsked(NoProduct, MatrixAdapter):
    """A third party's LoRA that fails when it is asked about a layer."""

    @classmethod
    def applies_to(cls, leaf):
        raise RuntimeError("boom")

    @classmethod
    def low_rank_scale(cls, rank, alpha):
        return alpha / rank


def test_a_lora_of_a_third_party_that_is_no_product_or_fails(getkey):
    registry = Registry()
    registry.register(NoProduct)
    registry.register(RaisesAsked)
    assert {NoProduct, RaisesAsked} <= {*registry.resolve("lora")}
    model = apply_lora([eqx.nn.Linear(4, 3, key=getkey())], 2, key=getkey(), wrapper=NoProduct)
    with pytest.raises(WrapperError, match=r"0 \(NoProduct\): its update is not known as a low-ra"):
        to_lora(model, registry=registry)
    cell = eqx.nn.GRUCell(2, 2, key=getkey())  # plain LoRA of this layer comes after the others
    model = trained([cell], "dora-recurrent", 1, rank=1)
    converted, _ = to_lora(model, rank=1, registry=registry)
    assert type(converted[0]).__name__ == "LoRARecurrent"


class Opaque(eqx.Module):
    weight: jax.Array


class OnOpaque(Difference):
    @classmethod
    def applies_to(cls, leaf):
        return isinstance(leaf, Opaque)


def test_all_that_cannot_be_converted_is_listed_with_its_path(getkey):
    model = {name: eqx.nn.Linear(2, 2, key=getkey()) for name in ("bias", "never", "fine")}
    model["opaque"] = Opaque(jnp.ones(3))
    for target, wrapper in [("bias", ScalesBias), ("never", NeverMerges), ("fine", "lora")]:
        model = trained(model, wrapper, 1, rank=1, target=target)
    model = trained(model, OnOpaque, 1, rank=1)
    with pytest.raises(WrapperError) as error:
        to_lora(model, rank=1)
    message = str(error.value)
    assert "bias (ScalesBias): it also changes bias, which LoRA leaves as it is" in message
    assert "never (NeverMerges): it has no weight to put the update into" in message
    assert "opaque (OnOpaque): no plain LoRA of the registry is for a Opaque" in message
    assert "fine" not in message


@pytest.mark.parametrize(("variant", "number"), [("dora", jnp.nan), ("vera", jnp.inf)])
def test_an_update_that_is_not_finite_is_told_with_its_path(variant, number):
    model = trained(layers(), [variant], 1, target="linear|stack")
    fields, rest = eqx.partition(model, lora_trainable_filter(model))
    bad = eqx.combine(jax.tree.map(lambda a: a.at[(0,) * a.ndim].set(number), fields), rest)
    with pytest.raises(WrapperError, match=r"(?s)linear \(.* holds NaN or infinity.*stack \("):
        to_lora(bad, rank=1)


def test_an_update_of_full_rank_needs_to_know_how_much_to_keep_and_its_values():
    model = trained(layers(), ["dora"], 1, target="linear")
    with pytest.raises(WrapperError, match=r"linear \(DoRALinear\): .* by `rank=` or by `energy"):
        to_lora(model)
    with pytest.raises(WrapperError, match=r"this is a template.*Give the model itself"):
        to_lora(eqx.filter_eval_shape(lambda: model), rank=2)
    model = trained(layers(), ["pissa"], 1, target="linear")
    with pytest.raises(WrapperError, match="are traced: give `rank`"):
        eqx.filter_jit(lambda m: to_lora(m, energy=0.9)[0])(model)
    traced = eqx.filter_jit(lambda m: to_lora(m, rank=2)[0])(model)
    expected = merge_lora(to_lora(model, rank=2)[0])["linear"].weight
    assert jnp.allclose(merge_lora(traced)["linear"].weight, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": 1, "energy": 0.5}, "both given"),
        ({"rank": 0}, "at least 1, but is 0"),
        ({"energy": 1.5}, r"in \(0, 1\], but is 1.5"),
    ],
)
def test_arguments_that_make_no_sense(arguments, message, unchecked):
    with pytest.raises(SelectionError, match=message):
        to_lora(layers(), **arguments)


# --- adapters with gates: `shrink`

GATES = {"convolution": [0, 1, 0], "linear": [1, 0, 1], "stack": [[0, 0, 1], [0, 0, 0]]}


def gated(model, gates=GATES):
    """`model` with AdaLoRA of rank 3, and these entries of `lora_E` at zero."""
    adapted = trained(model, "adalora", 1, rank=3)
    masks = [jnp.asarray(gates[name], jnp.float32) for name in adapted]
    es = [layer.lora_E * mask for layer, mask in zip(adapted.values(), masks, strict=True)]
    return eqx.tree_at(lambda m: [layer.lora_E for layer in m.values()], adapted, es)


def test_the_ranks_are_those_that_are_left_and_the_function_is_kept():
    model = gated(layers())
    small = shrink(model)
    assert {name: (type(a).__name__, a.rank) for name, a in small.items()} == {
        "convolution": ("LoRAConv", 1),
        "linear": ("LoRALinear", 2),
        "stack": ("LoRALinear", 1),
    }
    assert small["stack"].lora_A.shape == (2, 1, 4) and small["stack"].lora_B.shape == (2, 3, 1)
    found, expected = weights(merge_lora(small)), weights(merge_lora(model))
    for name in model:
        assert relative(found[name], expected[name]) < 1e-6
    # The directions themselves, and not others of the same product.
    layer, kept = model["linear"], np.array([0, 2])
    rows = layer.scaling * layer.lora_E[kept][:, None] * layer.lora_A[kept]
    np.testing.assert_allclose(small["linear"].lora_A, rows, rtol=1e-6)
    np.testing.assert_array_equal(small["linear"].lora_B, layer.lora_B[:, kept])


def test_a_layer_of_which_nothing_is_left_is_the_plain_layer_bit_for_bit():
    plain = layers()
    off = {name: np.zeros_like(gate) for name, gate in GATES.items()}
    with pytest.warns(JnoLoraWarning, match="Every gate is zero"):
        assert eqx.tree_equal(shrink(gated(plain, off)), plain)
    fresh = apply_lora(plain, 2, key=jax.random.key(0), wrapper="adalora")
    with pytest.warns(JnoLoraWarning, match="Every gate is zero"):
        assert eqx.tree_equal(shrink(fresh), plain)


def test_half_precision_layers_keep_their_dtype():
    dtype = jnp.bfloat16
    model = gated(layers(dtype))
    for name, layer in merge_lora(shrink(model)).items():
        assert layer.weight.dtype == dtype
        expected = np.asarray(merge_lora(model)[name].weight, np.float64)
        assert relative(np.asarray(layer.weight, np.float64), expected) < jnp.finfo(dtype).eps


def test_adapters_without_a_gate_stay_as_they_are():
    model = trained(layers(), "dora", 1, target="linear")
    model = trained(model, "adalora", 2, target="convolution")
    small = shrink(model)
    assert small["linear"] is model["linear"]
    assert type(small["convolution"]).__name__ == "LoRAConv"
    assert eqx.tree_equal(shrink(layers()), layers())


@pytest.mark.parametrize("rank", [2, 9])  # more than the layer allows, too
def test_a_third_party_s_gates_count_alike(rank):
    model = trained({"linear": eqx.nn.Linear(6, 4, key=jax.random.key(0))}, Gated, 1, rank=rank)
    model = eqx.tree_at(lambda m: m["linear"].gate, model, model["linear"].gate.at[0].set(0))
    small = shrink(model)
    assert small["linear"].rank == min(rank - 1, 4)
    found, expected = weights(merge_lora(small)), weights(merge_lora(model))
    assert relative(found["linear"], expected["linear"]) < 1e-5


def test_a_gated_adapter_whose_update_is_not_known_is_told_with_its_path():
    class Hidden(Gated):
        def low_rank_form(self):
            return None

        def __call__(self, x):
            return self.base(x)

        def merge(self):
            return self.base

    model = apply_lora(layers(), 2, key=jax.random.key(0), wrapper=Hidden, target="linear")
    with pytest.raises(WrapperError, match=r"linear \(Hidden\): its update is not known as a"):
        shrink(model)


@pytest.mark.parametrize("function", [adapter_effects, plot_adapters, shrink, to_lora])
def test_nets_and_sets_are_refused_by_name(function, model, registry):
    net, name = Net(model).lora(1, wrapper=ToyLinear), function.__name__
    with pytest.raises(SelectionError, match=rf"^{name} takes a model.*Give net\.module$"):
        function(net)
    with pytest.raises(SelectionError, match=rf"^{name} takes a model, but was given an Adapter"):
        function(extract_adapters(net.module))
