"""All kinds of derivatives by the inputs through a conditional are the merged network's."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.jet import jet

from jno.lora import Net
from jno_lora_conditional import Conditional, Powers, at, merge

Z = 0.7
X, V = (0.3, -0.2), (0.5, 1.0)


def third(u, x):
    """The first three derivatives along a line, by Taylor's series."""
    value, series = jet(u, (x,), ((jnp.asarray(V, x.dtype), 0 * x, 0 * x),))
    return [value, *series]


def directional(u, x):
    """The same by nested derivatives."""
    v, zero = jnp.asarray(V, x.dtype), jnp.zeros((), x.dtype)
    along = [lambda t: u(x + t * v)]
    for _ in range(3):
        along.append(jax.grad(along[-1]))
    return [derivative(zero) for derivative in along]


KINDS = {
    "grad of grad": lambda u, x: jax.jacrev(jax.grad(u))(x),
    "jacfwd": lambda u, x: jax.jacfwd(u)(x),
    "jacrev": lambda u, x: jax.jacrev(u)(x),
    "hessian": lambda u, x: jax.hessian(u)(x),
    "forward over forward": lambda u, x: jax.jacfwd(jax.jacfwd(u))(x),
    "jet": third,
}


def conditional(variant):
    """A conditional with random directions."""
    model = eqx.nn.MLP(2, "scalar", 8, 2, jnp.tanh, key=jax.random.key(0))
    net = Net(model, key=jax.random.key(1)).freeze().lora(2, 4.0, wrapper=variant)
    trainable, frozen = Conditional(net, Powers(0.2, degree=2)).partition()
    leaves, structure = jax.tree.flatten(trainable)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    leaves = [
        x + 0.3 * jax.random.normal(key, x.shape, x.dtype)
        for key, x in zip(keys, leaves, strict=True)
    ]
    return eqx.combine(jax.tree.unflatten(structure, leaves), frozen)


@pytest.mark.parametrize("variant", ["lora", "adalora"])
def test_derivatives_by_the_inputs_are_the_merged_networks(variant):
    with jax.enable_x64(True):
        family = conditional(variant)
        x = jnp.array(X)
        merged = merge(family, Z)
        base = family.model
        for kind, derivative in KINDS.items():
            ours = jax.jit(lambda z, x, d=derivative: d(at(family, z), x))(Z, x)
            plain = jax.jit(lambda x, d=derivative: d(merged, x))(x)
            start = derivative(base, x)
            for left, right, before in zip(
                *map(jax.tree.leaves, (ours, plain, start)), strict=True
            ):
                np.testing.assert_allclose(left, right, rtol=1e-9, atol=1e-12, err_msg=kind)
                assert np.max(np.abs(left - before)) > 1e-3, kind


def test_taylor_series_are_nested_derivatives():
    with jax.enable_x64(True):
        model = at(conditional("lora"), Z)
        x = jnp.array(X)
        for left, right in zip(third(model, x), directional(model, x), strict=True):
            np.testing.assert_allclose(left, right, rtol=1e-9)
