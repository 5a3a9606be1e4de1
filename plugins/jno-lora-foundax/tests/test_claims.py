"""Which layers are claimed and which refused, how adapters are found; whole models of foundax."""

import subprocess
import sys
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from foundax.architectures import common, fno, mgno, unet
from foundax.architectures.linear import Linear
from foundax_cases import (
    CONV_TRANSPOSES,
    CONVS,
    SPECTRAL,
    SUBSAMPLED,
    declared,
    filled,
    normal,
    perturbed,
    run,
    same_form,
)
from zoo_cases import assert_close

import jno_lora_foundax as package
from jno.lora import SelectionError, apply_lora, merge_lora, refresh, registered
from jno.lora.extending import adapted_layers
from jno_lora_foundax import (
    ChannelLastConvLayer,
    ChannelLastConvTransposeLayer,
    ChannelLastKernelLayer,
    LoRAChannelLastConv,
    LoRASpectral,
    ModeWeights,
    SubsampledLinearLayer,
)
from jno_lora_zoo import CorDA, LoRA, collect_statistics

KINDS = {
    ChannelLastConvLayer: CONVS,
    ChannelLastConvTransposeLayer: CONV_TRANSPOSES,
    SubsampledLinearLayer: SUBSAMPLED,
    LoRASpectral: SPECTRAL,
}


class Undeclared(eqx.Module):
    """Somebody's channel-last convolution: its kernel could be `(out, in, *k)` just as well."""

    weight: jax.Array
    bias: jax.Array | None = None
    strides: tuple[int, ...] = eqx.field(static=True, default=(1, 1))
    padding: str = eqx.field(static=True, default="SAME")

    def __call__(self, x):
        dims = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(
            x[None], self.weight, self.strides, self.padding, dimension_numbers=dims
        )
        return y[0]


def test_each_kind_claims_its_layers_and_no_other(getkey):
    for kind, own in KINDS.items():
        for layers in KINDS.values():
            for name, layer in layers.items():
                is_claimed = kind.applies_to(filled(layer.make, getkey()))
                assert is_claimed is (layers is own), (kind, name)


def made(cls, *args):
    return filled(lambda key: cls(*args, key=key), jax.random.key(0))


def test_refuses_everything_else(getkey):
    key, kernel = getkey(), np.ones((3, 3, 2, 4), np.float32)
    conv, spectral = made(common.Conv2d, 2, 4, 3), made(fno.SpectralConv1d, 3, 4, 2)
    subsampled = filled(SUBSAMPLED["subsample_in"].make, key)
    part = spectral.weight_real.shape

    def replaced(layer, value, where=lambda m: m.weight):
        return eqx.tree_at(where, layer, value)

    refused = [
        Undeclared(kernel),
        made(Linear, 3, 4),  # the zoo's
        made(eqx.nn.Conv2d, 2, 4, 3),
        made(eqx.nn.ConvTranspose2d, 2, 4, 3),
        common.BatchNorm(4),
        # A transposed convolution of foundax cannot run with other outputs than inputs.
        made(unet.ConvTranspose1d, 3, 4, 2),
        replaced(conv, kernel[0]),  # too few axes
        replaced(conv, kernel.astype(int)),
        replaced(conv, kernel.astype(complex)),
        replaced(conv, kernel[:, :, :0]),
        replaced(spectral, np.ones((3, 4, 3)), lambda m: m.weight_real),  # unlike its other part
        replaced(spectral, np.ones(part, complex), lambda m: m.weight_imag),
        replaced(spectral, np.ones((3, 4)), lambda m: m.weight_real),
        replaced(subsampled, np.ones((7, 5))),  # the other way round
        LoRAChannelLastConv(conv, 2, 1.0, key=key),
        LoRASpectral(spectral, 2, 1.0, key=key),
        *(kernel, np.ones((3, 3, 2, 4)), key, None, 3, "x", unet.Conv1dNHWC, object()),
    ]
    for kind in KINDS:
        for thing in refused:
            assert kind.applies_to(thing) is False, (kind, thing)


def test_a_kernel_whose_layout_nobody_declares_is_refused_with_the_reason(getkey):
    model = {"conv": Undeclared(jnp.ones((3, 3, 2, 4)))}
    with pytest.raises(SelectionError, match=r"conv: Undeclared.*\(3, 3, 2, 4\).*which axes"):
        apply_lora(model, 2, 4.0, key=getkey(), wrapper="auto")


class DeclaredLayer(ChannelLastKernelLayer):
    @classmethod
    def num_spatial_dims(cls, leaf):
        return 2 if isinstance(leaf, Undeclared) else None


class LoRADeclared(LoRA, DeclaredLayer):
    pass


def test_a_plugin_declares_another_kernel_in_one_line(getkey):
    base = Undeclared(jax.random.normal(getkey(), (3, 2, 2, 4)))
    wrapper = perturbed(LoRADeclared(base, 2, 4.0, key=getkey()))
    A, B = wrapper.lora_A.reshape(2, 2, 3, 2), wrapper.lora_B
    expected = base.weight + 2.0 * jnp.einsum("or,rihw->hwio", B, A)
    np.testing.assert_allclose(wrapper.merge().weight, expected, rtol=1e-5, atol=1e-6)
    assert wrapper(jnp.ones((4, 5, 2))).shape == (4, 5, 4)


class Spectrum(eqx.Module):
    """Somebody's spectral layer."""

    re: jax.Array
    im: Any


COMPLEX = jnp.ones((5, 4, 3), jnp.complex64)


@pytest.mark.parametrize(
    ("fields", "axes", "re", "im", "shown"),
    [
        (("re", "imag"), "iox", jnp.ones((2, 2, 3)), 0, "float32[2, 2, 3], a NoneType"),
        (("re", "im"), "iox", jnp.ones((2, 2, 3)), jnp.ones((2, 2, 4)), "float32[2, 2, 4]"),
        (("re", "im"), "iox", jnp.ones((2, 3)), jnp.ones((2, 3)), "float32[2, 3]"),
        (("re", "im"), "iox", jnp.ones((2, 2, 0)), jnp.ones((2, 2, 0)), "float32[2, 2, 0]"),
        (("re", "im"), "iox", jnp.ones((2, 2, 3), int), jnp.ones((2, 2, 3), int), "int32[2, 2, 3]"),
        (("re", "im"), "iox", COMPLEX, COMPLEX, "complex64[5, 4, 3]"),
        (("re",), "piox", jnp.ones((3, 2, 2, 4)), 0, "float32[3, 2, 2, 4]"),
    ],
)
def test_spectral_weights_that_are_not_as_declared_are_refused_with_the_facts(
    fields, axes, re, im, shown
):
    cls = declared(LoRASpectral, {Spectrum: ModeWeights(fields, axes)})
    assert not cls.applies_to(Spectrum(re, im))
    why = cls.why_not(Spectrum(re, im))
    assert f"its {' and '.join(fields)} are " in why and shown in why and repr(axes) in why
    as_parts = declared(LoRASpectral, {Spectrum: ModeWeights(("re",), "piox")})
    assert as_parts.applies_to(Spectrum(jnp.ones((2, 2, 2, 4)), 0))


def test_a_declaration_that_fails_claims_nothing():
    class LoRABroken(LoRASpectral):
        @classmethod
        def mode_weights(cls, leaf):
            return {"w": ModeWeights(("re", "im"), "iox" + leaf.more_axes)}

    layer = Spectrum(jnp.ones((2, 2, 3)), jnp.ones((2, 2, 3)))
    assert not LoRABroken.applies_to(layer) and LoRABroken.why_not(layer) is None


def test_calls_of_a_kernel_are_measured_as_its_patches(getkey):
    class Measured(CorDA, ChannelLastConvLayer):
        pass

    layer, x = unet.Conv1dNHWC(2, 3, 3, key=getkey()), jax.random.normal(getkey(), (6, 2))
    with jax.numpy_rank_promotion("allow"):
        loss = lambda m, x: jnp.sum(m(x) ** 2)  # noqa: E731
        found = collect_statistics(layer, [x], loss, wrapper=Measured)[""]
    padded = np.pad(np.asarray(x), ((1, 1), (0, 0)))
    # A channel's three places, then the next channel's, as in the matrix.
    patches = np.stack([padded[n : n + 3].T.reshape(-1) for n in range(6)])
    np.testing.assert_allclose(found["input_covariance"], patches.T @ patches / 6, atol=1e-5)


def test_found_by_name_by_variant_and_in_auto_but_not_by_default(getkey):
    model = [
        unet.ConvTranspose1d(4, 4, 2, key=getkey()),
        unet.Conv1dNHWC(4, 5, 3, key=getkey()),
        fno.SpectralConv1d(4, 5, 2, key=getkey()),
        Linear(3, 4, key=getkey()),
    ]
    refresh()
    record = next(r for r in registered() if r.distribution == "jno-lora-foundax")
    assert record.status == "loaded"
    assert {w.name for w in record.wrappers} < set(package.__all__)
    assert {w.name for w in record.wrappers if w.cls.auto} == {
        *("LoRAChannelLastConv", "LoRAChannelLastConvTranspose"),
        *("LoRASubsampledLinear", "LoRASpectral"),
    }

    def wrapped(**kwargs):
        adapted = apply_lora(model, 2, 4.0, key=getkey(), **kwargs)
        return [
            "-" if type(new) is type(old) else type(new).__name__
            for new, old in zip(adapted, model, strict=True)
        ]

    assert wrapped() == ["-", "-", "-", "LoRALinear"]
    assert wrapped(wrapper="LoRASpectral") == ["-", "-", "LoRASpectral", "-"]
    every = ["LoRAChannelLastConvTranspose", "LoRAChannelLastConv", "LoRASpectral", "LoRALinear"]
    assert wrapped(wrapper="auto") == wrapped(wrapper="lora") == every
    dora = ["DoRAChannelLastConvTranspose", "DoRAChannelLastConv", "-", "DoRALinear"]
    assert wrapped(wrapper="dora") == dora


@pytest.mark.slow
def test_the_plugin_does_not_import_foundax():
    code = (
        "import sys; from jno.lora import registered; import equinox as eqx, jax;"
        "record = next(r for r in registered() if r.distribution == 'jno-lora-foundax');"
        "assert record.status == 'loaded', record;"
        "layer = eqx.nn.Linear(2, 2, key=jax.random.key(0));"
        "claiming = [w.name for w in record.wrappers if w.cls.applies_to(layer)];"
        "assert claiming == ['BottleneckLinear'], claiming;"
        "heavy = ('foundax', 'jax_mpp', 'pdequinox');"
        "assert not {m for m in sys.modules if m.split('.')[0] in heavy}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# Layers that the default adapters cannot reach, and how often each of ours is used.
MODELS = {
    "MgNO": (
        lambda key: mgno.MgNO(
            (8, 8), 1, 4, 2, num_iteration=[(1, 1), (1, 1)], output_dim=2, key=key
        ),
        normal(8, 8, 2),
        {"LoRAChannelLastConv": 11, "LoRAChannelLastConvTranspose": 1},
    ),
    "FNO2D": (
        lambda key: fno.FNO2D(2, 6, 3, d_vars=2, n_layers=1, key=key),
        normal(6, 5, 2),
        {"LoRASpectral": 1, "LoRALinear": 3, "LoRAConv": 1},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_an_adapted_model_starts_as_the_model_moves_and_merges(name, getkey):
    make, data, expected = MODELS[name]
    base, inputs = filled(make, getkey()), data(getkey())
    adapted = apply_lora(base, 2, 4.0, key=getkey(), wrapper=["auto"])
    found = [type(adapter).__name__ for _, adapter in adapted_layers(adapted)]
    assert {cls: found.count(cls) for cls in expected} == expected
    trained = perturbed(adapted, size=0.2)
    merged = merge_lora(trained)
    assert same_form(merged, base)
    y, first, later, plain = (run(m, *inputs) for m in (base, adapted, trained, merged))
    assert_close(first, y, 1e-4)
    assert_close(plain, later, 1e-4)
    assert np.max(np.abs(later - y)) > 1e-3 * np.max(np.abs(y))
