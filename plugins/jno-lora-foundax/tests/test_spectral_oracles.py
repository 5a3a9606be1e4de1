"""Spectral weights in double precision: the law, the layers by definition, and every derivative.

Nothing is shared with what is tested but the adapter's arrays. Some layers of foundax compute in
complex64 whatever they are given, so their outputs can only be compared to that precision. Of the
new weights, which are ours, every derivative is compared in double precision for all layers.
"""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from foundax_cases import (
    SPECTRAL,
    filled,
    perturbed,
    run,
)
from foundax_cases.laws import complex_of, gains, per_mode, shared
from foundax_cases.maps import afno, geometric, spectral
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
every_case = pytest.mark.parametrize(
    ("cls", "name"), [pytest.param(*c, id=f"{c[0].__name__}-{c[1]}") for c in CASES]
)


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


def output_of(layer, matrices, x, *bases):
    """The output of the layer with these matrices."""
    match list(matrices):
        case ["w1", "w2"]:
            return afno(layer, *matrices.values(), x)
        case ["weights", "weights_0"]:
            return geometric(*matrices.values(), x, *bases)
    return spectral(layer, list(matrices.values()), x)


def weighted_sines(weights, numbers):
    """`sum(weights * sin(numbers))`, of complex ones by part."""
    total = np.sum(weights.real * np.sin(numbers.real))
    return total + np.sum(weights.imag * np.sin(numbers.imag))


@eqx.filter_jit
def computed(wrapper, x, bases, weights, of_matrices):
    """Output and merged layer, and the gradients of `weighted_sines` of either."""
    trainable, frozen = eqx.partition(wrapper, lora_trainable_filter(wrapper))

    def loss(trainable, x):
        y = eqx.combine(trainable, frozen)(x, *bases)
        return jnp.sum(weights * jnp.sin(y)), y

    def loss_of_matrices(trainable):
        layer = eqx.combine(trainable, frozen).merge()
        terms = jax.tree.map(lambda w, a: jnp.sum(w * jnp.sin(a)), of_matrices, layer)
        return sum(jax.tree.leaves(terms)), layer

    (by_arrays, by_x), y = jax.grad(loss, (0, 1), has_aux=True)(trainable, x)
    of_matrices, layer = jax.grad(loss_of_matrices, has_aux=True)(trainable)
    return y, layer, {**flat(by_arrays), "x": by_x}, flat(of_matrices)


def flat(wrapper):
    fields = {field: getattr(wrapper, field) for field in wrapper.adapter_fields}
    return {f"{f}/{name}": a for f, by_name in fields.items() for name, a in by_name.items()}


def made(cls, base, name, key):
    if cls is GainSpectral:
        return cls(base, key=key, per=PER[name])
    return cls(base, RANK, ALPHA, key=key)


@functools.lru_cache(maxsize=len(CASES))  # four tests want each
def both(cls, name):
    """The results of JAX, and those of NumPy as functions of the arrays."""
    key, random = jax.random.key(1), np.random.default_rng(3)
    base, (x, *bases) = filled(SPECTRAL[name].make, key), SPECTRAL[name].data(key)
    with jax.enable_x64(True):
        base, x, bases = cast_floats((base, x, bases), jnp.float64)
        wrapper = perturbed(made(cls, base, name, key))
        y_shape = eqx.filter_eval_shape(functools.partial(run, base), x, *bases).shape
        weights = random.normal(size=y_shape)
        of_matrices = jax.tree.map(lambda a: jnp.asarray(random.normal(size=a.shape)), base)
        result = run(computed, wrapper, x, bases, jnp.asarray(weights), of_matrices)
        result = jax.device_get(result)
    arrays = {name: np.asarray(a) for name, a in (flat(wrapper) | {"x": x}).items()}
    bases, originals = list(map(np.asarray, bases)), matrices_of(base)

    def law(changed):
        new = arrays | changed
        if cls is GainSpectral:
            return {name: gains(W, new[f"gain/{name}"]) for name, W in originals.items()}
        if cls is CPSpectral:
            return {
                name: shared(W, *(new[f"{f}/{name}"] for f in cls.adapter_fields), ALPHA / RANK)
                for name, W in originals.items()
            }
        return {
            name: per_mode(W, new[f"lora_A/{name}"], new[f"lora_B/{name}"], SCALES[cls])
            for name, W in originals.items()
        }

    def output(changed):
        return output_of(base, law(changed), changed.get("x", arrays["x"]), *bases)

    def loss(changed):
        return weighted_sines(weights, output(changed))

    def loss_of_matrices(changed):
        pairs = zip(matrices_of(of_matrices).values(), law(changed).values(), strict=True)
        return sum(weighted_sines(w, W) for w, W in pairs)

    return result, arrays, law, output, loss, loss_of_matrices


def assert_central_differences(gradients, loss, arrays, tolerance):
    for field, gradient in gradients.items():

        def changed(array, field=field):
            return loss({field: array})

        assert_close(gradient, central_difference(changed, arrays[field]), tolerance)


@every_case
def test_the_merged_matrices_are_the_law_to_double_precision(cls, name):
    (_, layer, *_), _, law, *_ = both(cls, name)
    expected = law({})
    for family, matrices in matrices_of(layer).items():
        assert matrices.dtype in (np.complex128, np.float64)
        assert matrices.dtype == expected[family].dtype
        assert_close(matrices.real, expected[family].real, VALUE)
        if np.iscomplexobj(matrices):
            assert_close(matrices.imag, expected[family].imag, VALUE)


@every_case
def test_the_output_is_that_of_the_definition(cls, name):
    (y, *_), _, _, output, *_ = both(cls, name)
    assert_close(y, output({}), 1e-6 if name in SINGLE else VALUE)


@every_case
def test_every_derivative_of_the_output_is_a_central_difference(cls, name):
    (*_, gradients, _), arrays, _, _, loss, _ = both(cls, name)
    assert gradients.keys() == arrays.keys()
    assert_central_differences(gradients, loss, arrays, 1e-6 if name in SINGLE else GRADIENT)


@every_case
def test_every_derivative_of_the_matrices_is_a_central_difference(cls, name):
    (*_, gradients), arrays, *_, loss_of_matrices = both(cls, name)
    assert_central_differences(gradients, loss_of_matrices, arrays, GRADIENT)


@pytest.mark.parametrize("name", SPECTRAL)
def test_the_definitions_are_what_foundax_computes(name):
    # The oracle must not be wrong in the same way: it is right for layers without adapters.
    key = jax.random.key(2)
    with jax.enable_x64(True):
        base, inputs = cast_floats(
            (filled(SPECTRAL[name].make, key), SPECTRAL[name].data(key)), jnp.float64
        )
        expected = np.asarray(run(base, *inputs))
    actual = output_of(base, matrices_of(base), *map(np.asarray, inputs))
    assert_close(actual, expected, 1e-6 if name in SINGLE else VALUE)
