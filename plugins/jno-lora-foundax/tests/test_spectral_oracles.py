"""Adapters of spectral weights in double precision: the law by NumPy, and every derivative.

Some layers of foundax compute in complex64 whatever they are given: their outputs are compared to
that precision.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from foundax_cases import (
    SPECTRAL,
    complex_of,
    filled,
    gains,
    per_mode,
    perturbed,
    run,
    same_form,
    shared,
)
from zoo_cases import assert_close, cast_floats, central_difference

from jno.lora import lora_trainable_filter
from jno_lora_foundax import CPSpectral, GainSpectral, LoRASpectral, rsLoRASpectral

RANK, ALPHA = 2, 3.0
SCALES = {LoRASpectral: ALPHA / RANK, rsLoRASpectral: ALPHA / RANK**0.5}
VALUE, GRADIENT = 1e-12, 1e-7
# The layers that write into arrays of single precision.
SINGLE = ("SpectralConv2d", "SpectralConv3d", "AFNO2D")

CASES = [
    *((LoRASpectral, name) for name in SPECTRAL),
    (rsLoRASpectral, "SpectralConv1d"),
    # Complex matrices, and real ones too.
    *(
        (cls, name)
        for cls in (GainSpectral, CPSpectral)
        for name in ("SpectralConv1d", "SpectralConvGeo")
    ),
]
PER = {"SpectralConv1d": "output", "SpectralConvGeo": "mode"}


def matrices_of(layer):
    """The matrices of each family as NumPy's numbers, `(*modes, out, in)`."""

    def array(name):
        return np.asarray(getattr(layer, name))

    match type(layer).__name__:
        case "AFNO2D":  # (parts, blocks, in, out)
            return {name: complex_of(array(name)).transpose(0, 2, 1) for name in ("w1", "w2")}
        case "SpectralConvGeo" | "SpectralConv":  # (in, out, *modes); cosine + i sine
            weights = complex_of([array("weights_c"), array("weights_s")])
            families = {"weights": weights, "weights_0": array("weights_0")}
        case _:  # (in, out, *modes); two arrays for each corner
            names = [name.removesuffix("_real") for name in vars(layer) if name.endswith("_real")]
            families = {n: complex_of([array(f"{n}_real"), array(f"{n}_imag")]) for n in names}
    return {name: np.moveaxis(W, (0, 1), (-1, -2)) for name, W in families.items()}


def with_matrices(layer, matrices):
    """The layer with other matrices: the inverse of `matrices_of`."""
    new = {}
    for name, W in matrices.items():
        match type(layer).__name__:
            case "AFNO2D":
                new[name] = np.stack([W.real, W.imag]).swapaxes(-1, -2)
                continue
            case "SpectralConvGeo" | "SpectralConv":
                fields = ("weights_c", "weights_s") if name == "weights" else (name,)
            case _:
                fields = (f"{name}_real", f"{name}_imag")
        W = np.moveaxis(W, (-1, -2), (0, 1))
        new |= zip(fields, (W.real, W.imag), strict=False)
    arrays = [jnp.asarray(array) for array in new.values()]
    return eqx.tree_at(lambda m: [getattr(m, field) for field in new], layer, arrays)


def weighted_sines(weights, numbers):
    """`sum(weights * sin(numbers))`, of complex ones by part."""
    total = np.sum(weights.real * np.sin(numbers.real))
    return total + np.sum(weights.imag * np.sin(numbers.imag))


@eqx.filter_jit
def computed(wrapper, inputs, of_matrices):
    """Output and merged layer, and the gradient of `weighted_sines` of its weights."""
    trainable, frozen = eqx.partition(wrapper, lora_trainable_filter(wrapper))

    def loss(trainable):
        layer = eqx.combine(trainable, frozen).merge()
        terms = jax.tree.map(lambda w, a: jnp.sum(w * jnp.sin(a)), of_matrices, layer)
        return sum(jax.tree.leaves(terms)), layer

    gradient, layer = jax.grad(loss, has_aux=True)(trainable)
    return wrapper(*inputs), layer, flat(gradient)


def flat(wrapper):
    fields = {field: getattr(wrapper, field) for field in wrapper.adapter_fields}
    return {f"{f}/{name}": a for f, by_name in fields.items() for name, a in by_name.items()}


def made(cls, base, name, key):
    if cls is GainSpectral:
        return cls(base, key=key, per=PER[name])
    return cls(base, RANK, ALPHA, key=key)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cls", "name"), [pytest.param(*c, id=f"{c[0].__name__}-{c[1]}") for c in CASES]
)
def test_the_weights_and_their_derivatives_are_the_law_of_numpy(cls, name):
    key, random = jax.random.key(1), np.random.default_rng(3)
    base, inputs = filled(SPECTRAL[name].make, key), SPECTRAL[name].data(key)
    with jax.enable_x64(True):
        base, inputs = cast_floats((base, inputs), jnp.float64)
        wrapper = perturbed(made(cls, base, name, key))
        of_matrices = jax.tree.map(lambda a: jnp.asarray(random.normal(size=a.shape)), base)
        y, merged, gradients = jax.device_get(run(computed, wrapper, inputs, of_matrices))
    assert same_form(merged, jax.device_get(base))
    arrays = {name: np.asarray(a) for name, a in flat(wrapper).items()}
    if cls is LoRASpectral:
        layer = SPECTRAL[name]
        count = RANK * (layer.outputs + layer.inputs) * layer.modes
        assert sum(a.size for a in arrays.values()) == count
    originals = matrices_of(base)

    def matrices(family, W, new):
        if cls is GainSpectral:
            return gains(W, new[f"gain/{family}"])
        factors = [new[f"{field}/{family}"] for field in cls.adapter_fields]
        if cls is CPSpectral:
            return shared(W, *factors, ALPHA / RANK)
        return per_mode(W, *factors, SCALES[cls])

    def law(changed):
        return {f: matrices(f, W, arrays | changed) for f, W in originals.items()}

    def loss(changed):
        pairs = zip(matrices_of(of_matrices).values(), law(changed).values(), strict=True)
        return sum(weighted_sines(w, W) for w, W in pairs)

    expected = law({})
    for family, actual in matrices_of(merged).items():
        assert actual.dtype in (np.complex128, np.float64)
        assert actual.dtype == expected[family].dtype
        assert_close(actual.real, expected[family].real, VALUE)
        assert_close(actual.imag, expected[family].imag, VALUE)
    with jax.enable_x64(True):
        output = run(with_matrices(base, expected), *inputs)
    assert_close(y, output, 1e-6 if name in SINGLE else VALUE)
    assert gradients.keys() == arrays.keys()
    for field, gradient in gradients.items():
        difference = central_difference(lambda a, field=field: loss({field: a}), arrays[field])
        assert_close(gradient, difference, GRADIENT)
