"""All kinds of derivatives by the inputs through a conditional are the merged network's."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.jet import jet

from jno.lora import Net
from jno_lora_conditional import Conditional, Powers, at, merge
from jno_lora_conditional.testing import trained_at_random

V = (0.5, 1.0)


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


def derivatives(u, x):
    return {
        "reverse over reverse": jax.jacrev(jax.grad(u))(x),
        "forward over forward": jax.jacfwd(jax.jacfwd(u))(x),
        "jet": third(u, x),
        "nested": directional(u, x),
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
        np.testing.assert_allclose(ours["jet"], ours["nested"], rtol=1e-9)
