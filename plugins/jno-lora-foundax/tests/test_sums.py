"""Spectral adapters and bottlenecks that are added up, scaled, or converted to LoRA."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from foundax_cases import complex_of, declared, perturbed

from jno.lora import (
    Net,
    Registry,
    SelectionError,
    WrapperError,
    extract_adapters,
    merge_lora,
    swap_adapters,
)
from jno_lora_combine import combine, combine_with_report, scale_adapters, sum_adapters, to_lora
from jno_lora_foundax import (
    BottleneckLinear,
    CPSpectral,
    GainSpectral,
    LoRASpectral,
    ModeWeights,
    rsLoRASpectral,
)
from jno_lora_zoo import plugin

MODES, INPUTS, OUTPUTS = 6, 3, 4
WEIGHTS = (0.7, -1.5, 2.0)
RANKS = (1, 2, 2)  # 5 directions, and a matrix has no more than 3


class OwnSpectral(eqx.Module):
    w: jax.Array


FAMILY = ModeWeights(("w",), "xio", lambda sizes: np.arange(sizes[0]))


OwnLoRA, OwnRsLoRA, OwnCP, OwnGain = (
    declared(cls, {OwnSpectral: FAMILY})
    for cls in (LoRASpectral, rsLoRASpectral, CPSpectral, GainSpectral)
)


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def plain_lora():
    registry = Registry(discover=False)
    registry.register(plugin)
    registry.register(OwnLoRA)
    return registry


def model_of(seed=0):
    re, im = np.random.default_rng(seed).normal(size=(2, MODES, INPUTS, OUTPUTS))
    return {"layer": OwnSpectral(jnp.asarray(re + 1j * im))}


def trained(cls, seed, rank=2, model=None, **options):
    net = Net(model or model_of(), key=jr.key(seed)).freeze()
    return perturbed(net.lora(rank, 3.0, wrapper=cls, options=options).module, 0.1 * (1 + seed))


def update_of(adapter):
    """The update `(modes, out, in)` of one adapter, from its arrays alone."""
    arrays = {name: complex_of(np.asarray(x)) for name, x in adapter.state().items()}
    W = np.asarray(adapter.base.w).transpose(0, 2, 1)
    if isinstance(adapter, GainSpectral):
        return arrays["gain/w"][..., None] * W
    if isinstance(adapter, CPSpectral):
        factors = (arrays["lora_B/w"], arrays["mode_factors/w"], arrays["lora_A/w"])
        return 3.0 / adapter.rank * np.einsum("or,kr,ri->koi", *factors)
    scale = 3.0 / (adapter.rank**0.5 if isinstance(adapter, rsLoRASpectral) else adapter.rank)
    return scale * arrays["lora_B/w"] @ arrays["lora_A/w"]


def change_of(model):
    """The change of the merged weight."""
    merged = np.asarray(merge_lora(model)["layer"].w) - np.asarray(model_of()["layer"].w)
    return merged.transpose(0, 2, 1)


@pytest.mark.parametrize("cls", [OwnLoRA, OwnRsLoRA, OwnCP, OwnGain])
def test_a_sum_is_exact(cls, double):
    models = [trained(cls, seed, rank) for seed, rank in enumerate(RANKS)]
    sets = [extract_adapters(model) for model in models]
    combined, report = combine_with_report(sets, WEIGHTS)
    expected = sum(
        weight * update_of(model["layer"]) for weight, model in zip(WEIGHTS, models, strict=True)
    )
    np.testing.assert_allclose(
        change_of(swap_adapters(model_of(), combined)), expected, rtol=0, atol=1e-13
    )
    rank = {OwnCP: sum(RANKS), OwnGain: None}.get(cls, min(INPUTS, OUTPUTS))
    assert report.rows[0].rank == combined["layer"].rank == rank
    assert combined["layer"].wrapper is cls and cls.__name__ in str(report)
    named = dict(zip("abc", sets, strict=True))
    together = sum_adapters(model_of(), named, weights=dict(zip("abc", WEIGHTS, strict=True)))
    np.testing.assert_allclose(change_of(together), expected, rtol=0, atol=1e-13)
    half = swap_adapters(model_of(), scale_adapters(sets[1], 0.5))
    np.testing.assert_allclose(change_of(half), update_of(models[1]["layer"]) / 2, atol=1e-13)


def test_bands_are_added_up_band_by_band(double):
    models = [trained(OwnLoRA, seed, bands={2: 2, 4: 1}) for seed in (0, 1)]
    combined = combine([extract_adapters(model) for model in models], [1.0, -2.0])
    expected = change_of(models[0]) - 2 * change_of(models[1])
    adapted = swap_adapters(model_of(), combined)
    np.testing.assert_allclose(change_of(adapted), expected, atol=1e-13)
    A = adapted["layer"].lora_A
    assert {name: x.shape[-2] for name, x in A.items()} == {"w_below_2": 3, "w_below_4": 2}
    with pytest.raises(SelectionError, match=r"'layer': .*their arrays differ.*`bands`"):
        combine([combined, extract_adapters(trained(OwnLoRA, 2))], [1.0, 1.0])
    fewer = extract_adapters(trained(OwnLoRA, 2, bands={2: 1}))
    for sets in ([combined, fewer], [fewer, combined]):
        with pytest.raises(SelectionError, match="w_below_4 are not in all of them"):
            combine(sets, [1.0, 1.0])


@pytest.mark.parametrize("cls", [OwnLoRA, OwnGain])
def test_a_sum_in_half_precision_is_rounded_once(cls):
    half = {"adapter_dtype": jnp.bfloat16}
    sets = [extract_adapters(trained(cls, seed, 2, **half)) for seed in (0, 1)]
    wide = [jax.tree.map(lambda x: x.astype(jnp.float32), adapters) for adapters in sets]
    combined, exact = combine(sets, [1.1, 0.7]), combine(wide, [1.1, 0.7])
    for adapters in (combined, scale_adapters(sets[0], 0.5)):
        assert {x.dtype for x in adapters["layer"].state.values()} == {jnp.dtype(jnp.bfloat16)}
    # Two roundings would give other numbers.
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), exact)
    assert eqx.tree_equal(combined["layer"].state, rounded["layer"].state)


def test_a_sum_of_bottlenecks_adds_up_what_they_add(getkey):
    layer = eqx.nn.Linear(3, 4, key=getkey())
    models = [trained(BottleneckLinear, seed, seed + 1, {"layer": layer}) for seed in (0, 1)]
    combined = combine([extract_adapters(model) for model in models], [2.0, -1.0])
    x = jr.normal(getkey(), (3,))
    first, second = (model["layer"](x) - layer(x) for model in models)
    found = swap_adapters({"layer": layer}, combined)["layer"](x) - layer(x)
    np.testing.assert_allclose(found, 2 * first - second, atol=1e-5)
    with pytest.raises(WrapperError, match="it cannot be merged"):
        to_lora(models[0])
    # Beside a change of the weight, both adapters act.
    lora = perturbed(Net({"layer": layer}).lora(2, wrapper="lora").module, 0.3)
    sets = {"a": extract_adapters(models[0]), "b": extract_adapters(lora)}
    together = sum_adapters({"layer": layer}, sets)["layer"](x) - layer(x)
    np.testing.assert_allclose(together, first + lora["layer"](x) - layer(x), atol=1e-5)


def test_a_stack_is_added_up_slice_by_slice():
    stack = {"layer": OwnSpectral(jnp.stack([model_of(seed)["layer"].w for seed in (0, 1)]))}
    models = [trained(OwnCP, seed, model=stack) for seed in (0, 1)]
    combined = combine([extract_adapters(model) for model in models], [1.0, 1.0])
    w = stack["layer"].w
    first, second = (merge_lora(model)["layer"].w - w for model in models)
    found = merge_lora(swap_adapters(stack, combined))["layer"].w - w
    np.testing.assert_allclose(found, first + second, atol=1e-5)


@pytest.mark.parametrize("cls", [OwnRsLoRA, OwnCP, OwnLoRA])
def test_plain_lora_of_each_mode_has_the_same_update(cls, double, plain_lora):
    model = trained(cls, 1, 2)
    converted, report = to_lora(model, registry=plain_lora)
    assert type(converted["layer"]) is OwnLoRA
    assert converted["layer"].rank == 2 and report.error < 1e-7
    np.testing.assert_allclose(change_of(converted), update_of(model["layer"]), atol=1e-13)
    # The nearest update of rank 1, by NumPy's decomposition of each mode.
    U, S, Vt = np.linalg.svd(update_of(model["layer"]), full_matrices=False)
    cut, report = to_lora(model, rank=1, registry=plain_lora)
    nearest = U[..., :1] * S[:, None, :1] @ Vt[..., :1, :]
    np.testing.assert_allclose(change_of(cut), nearest, atol=1e-13)
    assert float(report.error) == pytest.approx(np.sqrt(np.sum(S[:, 1:] ** 2) / np.sum(S**2)))


def test_a_gain_says_how_it_becomes_lora(plain_lora):
    model = trained(OwnGain, 0)
    with pytest.raises(WrapperError, match="say how much of it to keep"):
        to_lora(model, registry=plain_lora)
    converted, _ = to_lora(model, energy=1.0, registry=plain_lora)
    np.testing.assert_allclose(change_of(converted), change_of(model), atol=1e-5)
    with pytest.raises(WrapperError, match=r"is for a OwnSpectral: register .* LoRASpectral"):
        to_lora(model, energy=1.0)
