"""Complex arrays: one field holds both parts, and adapters see two real arrays."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from foundax_cases import declared, perturbed, run_spectral

from jno.lora import Net, lora_report, merge_lora, unwrap_lora
from jno_lora_combine import adapter_effects
from jno_lora_foundax import CPSpectral, LoRASpectral, ModeWeights
from jno_lora_testing import WrapperCase, parametrize_with_checks

MODES, INPUTS, OUTPUTS = 4, 3, 5


class ComplexSpectral(eqx.Module):
    """A spectral layer of one complex array, as many checkpoints have it."""

    w: jax.Array

    def __call__(self, x):
        modes = jnp.einsum("xi,xio->xo", jnp.fft.rfft(x, axis=0)[:MODES], self.w)
        return jnp.fft.irfft(modes, len(x), axis=0)


class PairSpectral(eqx.Module):
    """The same matrices in two real arrays, with the axes in another order."""

    re: jax.Array
    im: jax.Array


class PartsSpectral(eqx.Module):
    """The same matrices in one real array, with an axis for the parts."""

    w: jax.Array


FAMILIES = {
    ComplexSpectral: ModeWeights(("w",), "xio"),
    PairSpectral: ModeWeights(("re", "im"), "oxi"),
    PartsSpectral: ModeWeights(("w",), "iopx"),
}


OwnCP, OwnLoRA = (declared(cls, FAMILIES) for cls in (CPSpectral, LoRASpectral))


def complex_layer(key):
    re, im = jr.normal(key, (2, MODES, INPUTS, OUTPUTS))
    return ComplexSpectral(jax.lax.complex(re, im))


def in_every_form(key):
    w = complex_layer(key).w
    re, im = (part.transpose(2, 0, 1) for part in (w.real, w.imag))
    parts = jnp.stack([w.real, w.imag]).transpose(2, 3, 0, 1)
    return ComplexSpectral(w), PairSpectral(re, im), PartsSpectral(parts)


@pytest.mark.slow
@parametrize_with_checks(
    [
        WrapperCase(
            OwnCP,
            base=complex_layer,
            inputs=lambda key: (jr.normal(key, (12, INPUTS)),),
            rank=2,
            call=run_spectral,
            parameters=2 * 2 * (INPUTS + OUTPUTS + MODES),
        )
    ]
)
def test_conformance(check):
    check()


@pytest.mark.parametrize("cls", [OwnCP, OwnLoRA])
def test_a_complex_array_is_adapted_as_two_real_arrays(cls):
    layers = in_every_form(jr.key(0))
    adapters = [perturbed(cls(layer, 2, 3.0, key=jr.key(1))) for layer in layers]
    assert all(eqx.tree_equal(adapters[0].state(), other.state()) for other in adapters[1:])
    of_complex, of_pair, of_parts = map(merge_lora, adapters)
    assert of_complex.w.dtype == jnp.complex64
    pair = jax.lax.complex(of_pair.re, of_pair.im).transpose(1, 2, 0)
    np.testing.assert_allclose(of_complex.w, pair, rtol=1e-5, atol=1e-6)
    imag = of_parts.w.transpose(2, 3, 0, 1)[1]
    np.testing.assert_allclose(of_complex.w.imag, imag, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(unwrap_lora(adapters[0]).w, layers[0].w)
    # A complex number counts as two parameters, as a pair does.
    trained = sum(array.size for array in adapters[0].state().values())
    assert {lora_report(adapter).total for adapter in adapters} == {2 * 60 + trained}
    effects = [adapter_effects(adapter).rows[0] for adapter in adapters]
    assert {(row.array, row.shape) for row in effects} == {("w", (OUTPUTS, INPUTS * MODES))}
    for row in effects[1:]:
        assert row.relative_norm == pytest.approx(effects[0].relative_norm, rel=1e-6)
        np.testing.assert_allclose(row.singular_values, effects[0].singular_values, rtol=1e-5)


class Undeclared(eqx.Module):
    weight: jax.Array  # the name that a convolution gives its kernel


@pytest.mark.parametrize("wrapper", [None, "cp"])
def test_a_plan_says_how_to_declare_weights_of_modes(wrapper):
    array = jnp.ones((MODES, INPUTS, OUTPUTS))
    model = {
        "complex": ComplexSpectral(array.astype(jnp.complex64)),
        "weight": Undeclared(array.astype(jnp.complex64)),
        "pair": PairSpectral(array, array),
        "real": ComplexSpectral(array),
        "linear": eqx.nn.Linear(2, 2, key=jr.key(0)),
    }
    rows = {row.path: row.explanation for row in Net(model).plan(2, wrapper=wrapper).rows}
    named = {"complex": "its w,", "weight": "its weight,", "pair": "its re and im,"}
    for path, fields in named.items():
        assert fields in rows[path]
        assert "`ModeWeights`" in rows[path] and "CPSpectral (jno_lora_foundax)" in rows[path]
    assert "declare w (docs/operators.md)" in rows["real"]


class Doubled(OwnCP):
    """A law of its own, which the way around `adapted_matrices` must not pass by."""

    def adapted_matrices(self, name, W):
        return 2 * super().adapted_matrices(name, W)


def test_the_law_of_a_subclass_of_cp_is_kept():
    layer = in_every_form(jr.key(0))[2]
    plain, doubled = (
        perturbed(cls(layer, 2, 3.0, key=jr.key(1))).merge().w for cls in (OwnCP, Doubled)
    )
    np.testing.assert_allclose(2 * plain, doubled, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("axes", ["iox", "oix", "xio", "xoi", "ixo", "oxi"])
def test_the_merged_array_in_every_layout_to_double_precision(axes):
    CP = declared(CPSpectral, {ComplexSpectral: ModeWeights(("w",), axes)})
    sizes = {"i": INPUTS, "o": OUTPUTS, "x": MODES}
    with jax.enable_x64(True):
        base = ComplexSpectral(jnp.ones([sizes[axis] for axis in axes], jnp.complex128))
        adapter = perturbed(CP(base, 2, 6.0, key=jr.key(0)))
        merged = merge_lora(adapter).w
    fields = (np.asarray(getattr(adapter, name)["w"]) for name in CP.adapter_fields)
    A, B, c = (array[0] + 1j * array[1] for array in fields)
    assert A.dtype == merged.dtype == np.complex128
    update = 3.0 * np.einsum(f"or,xr,ri->{axes}", B, c, A)
    np.testing.assert_allclose(merged, 1 + update, rtol=1e-12)


def test_a_step_multiplies_complex_arrays_and_transposes_no_weight():
    layer = complex_layer(jr.key(0))
    adapter = OwnCP(layer, 2, 3.0, key=jr.key(1))
    ops = [str(eqn.primitive) for eqn in jax.make_jaxpr(lambda a: a.merge().w)(adapter).eqns]
    assert ops.count("dot_general") == 1 and "real" not in ops and "concatenate" not in ops
