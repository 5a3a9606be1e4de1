"""Small problems in jNO, spelled as each of its versions wants them."""

import equinox as eqx
import foundax
import jax
import jax.numpy as jnp
import jno.jnp_ops as jnn
import numpy as np
import optax

import jno

IS_OLD = jno.__version__.startswith("0.2.")


def mlp(key=0):
    module = foundax.mlp(1, output_dim=3, hidden_dims=6, num_layers=2, key=jax.random.key(key))
    return jno.nn.wrap(module)


def operator():
    module = foundax.fno1d(1, hidden_channels=6, n_modes=3, n_layers=1, key=jax.random.key(1))
    return jno.nn.wrap(module)


def with_adam(net):
    if IS_OLD:
        return net.optimizer(optax.adam, lr=jno.LearningRateSchedule(1e-2))
    return net.optimizer(optax.adam(1e-2))


def core(losses, domain):
    return jno.core(losses, domain) if IS_OLD else jno.core(losses)


def pinn(*nets):
    """The core of a residual with second derivatives, one for each net."""
    domain = 1 * jno.domain(constructor=jno.domain.line(mesh_size=0.2))
    x, *_ = domain.variable("interior")
    losses = []
    for net in map(with_adam, nets):
        u = net(x)[..., 0]
        losses.append((u.d(x).d(x) + jnn.sin(jnn.pi * x)).mse)
    return core(losses, domain)


def data_driven(net):
    """The core of an operator that learns from four pairs of functions."""
    domain = 4 * jno.domain(constructor=jno.domain.line(mesh_size=0.25))
    given = np.random.default_rng(0).normal(size=(4, 1, 16, 1)).astype(np.float32)
    f, target = domain.variable("_f", given), domain.variable("_t", np.cumsum(given, axis=2))
    return core([(with_adam(net)(f) - target).mse], domain)


def copy_of(module):
    """The same arrays again: jNO donates those that it trains."""
    return jax.tree.map(lambda leaf: leaf.copy() if eqx.is_array(leaf) else leaf, module)


def output(module, x=0.3):
    return module(jnp.asarray([x]))
