"""Values of the parameter, for each example and known while a step is compiled; derivatives."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from foundax.architectures.fno import SpectralConv1d
from jax.experimental.jet import jet

from jno.lora import Net, extract_adapters, swap_adapters
from jno.lora.extending import equations_in
from jno_lora_conditional import Conditional, Indexed, Network, Powers, at, merge
from jno_lora_conditional.testing import trained_at_random

BATCH, RANK, INPUTS, OUTPUTS = 7, 3, 16, 24
KEY = jax.random.key(0)
LAYERS = {
    "linear": (eqx.nn.Linear(INPUTS, OUTPUTS, key=KEY), (INPUTS,)),
    "conv": (eqx.nn.Conv1d(INPUTS, OUTPUTS, 3, key=KEY), (INPUTS, 9)),
    "spectral": (SpectralConv1d(INPUTS, OUTPUTS, 5, key=KEY), (12, INPUTS)),
}
CASES = [
    ("linear", "lora", {"bias": "train"}, 1),
    ("linear", "dora", {}, 2),
    ("conv", "lora", {}, 1),
    ("spectral", "cp", {}, 1),
]


@pytest.fixture(autouse=True)
def foundax_mixes_dtypes():
    with jax.numpy_dtype_promotion("standard"):
        yield


def made(kind, wrapper, options, degree):
    layer, shape = LAYERS[kind]
    net = Net(layer).freeze().lora(rank=RANK, wrapper=wrapper, options=options)
    conditional = Conditional(net, Powers(source=0.5, degree=degree))
    xs = jax.random.normal(jax.random.key(1), (BATCH, *shape))
    return layer, trained_at_random(conditional), jnp.linspace(0.5, 1.5, BATCH), xs


def outputs(conditional, zs, xs):
    return jax.vmap(lambda z, x: at(conditional, z)(x))(zs, xs)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "wrapper", "options", "degree"), CASES)
def test_no_example_copies_factors_or_weights(kind, wrapper, options, degree):
    layer, conditional, zs, xs = made(kind, wrapper, options, degree)
    program = jax.jit(lambda zs, xs: (outputs(conditional, zs, xs), jax.vmap(layer)(xs)))
    mapped, plain = program(zs, xs)
    for z, x, y in zip(zs[:3], xs, mapped, strict=False):
        # A parameter with a value makes plain fields.
        assert jnp.allclose(at(conditional, float(z))(x), y, rtol=1e-5, atol=1e-5)
    if wrapper != "dora":  # which divides by a norm
        assert jnp.all(mapped[0] == plain[0])
    for equation in equations_in(jax.make_jaxpr(program)(zs, xs)):
        for variable in equation.outvars:
            shape = variable.aval.shape
            is_copy = len(shape) > 2 and {OUTPUTS, INPUTS} <= set(shape[1:])
            is_copy |= kind == "linear" and len(shape) > 2 and {OUTPUTS, RANK} <= set(shape[1:])
            assert not (shape[:1] == (BATCH,) and is_copy), equation


@pytest.mark.parametrize(("kind", "wrapper"), [("linear", "dora"), ("spectral", "cp")])
def test_the_state_of_a_traced_model_is_a_plain_state(kind, wrapper):
    layer, conditional, _, xs = made(kind, wrapper, {}, 2)
    adapted = eqx.filter_jit(at)(conditional, jnp.asarray(1.2))
    assert adapted.direction_weights is not None
    plain = swap_adapters(layer, extract_adapters(adapted))
    assert plain.direction_weights is None
    assert jnp.allclose(plain(xs[0]), at(conditional, 1.2)(xs[0]), rtol=1e-5, atol=1e-5)


def test_a_stack_and_dropout():
    make = eqx.filter_vmap(lambda key: eqx.nn.Linear(8, 8, key=key))
    stack = make(jax.random.split(KEY, 3))
    net = Net(stack).freeze().lora(rank=2, options={"dropout": 0.5})
    conditional = trained_at_random(Conditional(net, Powers(source=0.0, degree=2)))
    x = jnp.linspace(-1, 1, 8)

    def scanned(z, key):
        dynamic, static = eqx.partition(at(conditional, z), eqx.is_array)
        step = lambda h, layer: (eqx.combine(layer, static)(h, key=key), None)  # noqa: E731
        return jax.lax.scan(step, x, dynamic)[0]

    zs, key = jnp.array([0.0, 0.7]), jax.random.key(3)
    mapped = jax.vmap(scanned, in_axes=(0, None))(zs, key)
    for z, y in zip(zs, mapped, strict=True):
        assert jnp.allclose(scanned(float(z), key), y, rtol=1e-5, atol=1e-5)
    plain = jax.lax.scan(lambda h, layer: (layer(h), None), x, stack)[0]
    assert jnp.allclose(mapped[0], plain, rtol=1e-6)


@pytest.mark.parametrize(
    ("basis", "z", "is_summed"),
    [
        (Indexed(4), 2, True),
        (Powers(source=0.1), 0.3, True),
        (Powers(source=0.1), jnp.array(0.3), True),
        (Network(source=0.1, key=KEY), 0.3, False),  # its arrays are traced
    ],
)
def test_directions_are_summed_for_a_known_value(basis, z, is_summed):
    """A roll-out over four contexts would cost four products for each call otherwise."""
    net = Net(eqx.nn.Linear(4, 3, key=KEY)).freeze().lora(rank=2)
    conditional = trained_at_random(Conditional(net, basis))
    seen = []

    @eqx.filter_jit
    def step(conditional, x):
        adapter = at(conditional, z)
        seen.append(adapter.direction_weights is None)
        return adapter(x)

    x = jnp.ones(4)
    y = step(conditional, x)
    assert seen == [is_summed]
    assert jnp.allclose(y, at(conditional, z)(x), atol=1e-5)


def derivatives(u, x):
    return {
        "reverse over reverse": jax.jacrev(jax.grad(u))(x),
        "forward over forward": jax.jacfwd(jax.jacfwd(u))(x),
        "jet": jet(u, (x,), ((jnp.asarray((0.5, 1.0), x.dtype), 0 * x, 0 * x),)),
    }


def test_derivatives_by_the_inputs_are_the_merged_networks():
    with jax.enable_x64(True):
        model = eqx.nn.MLP(2, "scalar", 8, 2, jnp.tanh, key=jax.random.key(0))
        net = Net(model, key=jax.random.key(1)).freeze().lora(2, 4.0, wrapper="adalora")
        family = trained_at_random(Conditional(net, Powers(0.2, degree=2)))
        x = jnp.array((0.3, -0.2))
        ours = jax.jit(lambda z, x: derivatives(at(family, z), x))(0.7, x)
        plain, start = (
            eqx.filter_jit(derivatives)(merged, x) for merged in (merge(family, 0.7), model)
        )
        for kind in ours:
            trees = (tree[kind] for tree in (ours, plain, start))
            for left, right, before in zip(*map(jax.tree.leaves, trees), strict=True):
                np.testing.assert_allclose(left, right, rtol=1e-9, atol=1e-12, err_msg=kind)
                assert np.max(np.abs(left - before)) > 1e-3, kind
