"""Inside jNO: a network that solves one equation moves to a second equation, by adapters.

A physics-informed network learns, from the equation alone, the solution of

    -u_xx - u_yy = f on the unit square,    u = 0 at its boundary,    f = 2 pi^2 (m_1 + 4 a m_2)

with `m_k = sin(k pi x) sin(k pi y)`, which is `u = m_1 + a m_2`. It learns `a = 0`, then moves to
`a = 0.5`: from nothing, by full fine-tuning, and by adapters through jNO's `net.lora`.

    pip install jax-numerical-operators "jno-lora[jno,zoo]" foundax optax matplotlib
    python examples/jno_poisson.py

About two minutes on two cores, seconds with `--quick`. Writes `jno_poisson.png`.
"""

import argparse
import pathlib

import equinox as eqx
import foundax
import jax
import jax.numpy as jnp
import jno.jnp_ops as jnn
import matplotlib

import jno

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import optax

import jno_lora_jno
from jno.lora import save_adapters

AMPLITUDE = 0.5  # of the second mode, in the second equation
METHODS = ("lora", "pissa", "dora")
RANKS = [{"target": "layers/0", "rank": 2}, {"target": "output", "rank": 1}, {"rank": 8}]


def mode(k, x, y, np=jnn):
    """The mode `m_k` at jNO's variables or at arrays."""
    return np.sin(k * jnp.pi * x) * np.sin(k * jnp.pi * y)


def solution(amplitude, x, y):
    """The exact solution, at arrays of points."""
    return mode(1, x, y, jnp) + amplitude * mode(2, x, y, jnp)


def solve(net, amplitude, size, epochs):
    """Train `net` on the residual of the equation. jNO merges adapters at the end."""
    domain = jno.shape.rect(0, 0, 1, 1, size=size).domain()
    x, y, *_ = domain.variable("interior")
    # Zero at the boundary by construction.
    u = net(x, y)[..., 0] * x * (1 - x) * y * (1 - y)
    source = 2 * jnp.pi**2 * (mode(1, x, y) + 4 * amplitude * mode(2, x, y))
    residual = u.d(x).d(x) + u.d(y).d(y) + source
    return jno.core([residual.mse]).solve(epochs)


def values(module, points):
    """The network's solution at a grid of `points` by `points`."""
    x, y = jnp.meshgrid(*2 * [jnp.linspace(0, 1, points)])
    grid = jnp.stack([x.ravel(), y.ravel()], axis=-1)
    u = jax.vmap(lambda p: module(p[0:1], p[1:2])[..., 0].reshape(()))(grid).reshape(x.shape)
    return x, y, u * x * (1 - x) * y * (1 - y)


def error(module, amplitude, points=41):
    """The relative L2 error of the network's solution."""
    x, y, u = values(module, points)
    exact = solution(amplitude, x, y)
    return float(jnp.linalg.norm(u - exact) / jnp.linalg.norm(exact))


def draw(path, modules, errors):
    """Draw the solution of each module, with its error."""
    size = (2.4 * len(modules), 3.3)
    figure, axes = plt.subplots(1, len(modules), figsize=size, layout="constrained")
    for axis, (name, module) in zip(axes, modules.items(), strict=True):
        x, y, u = values(module, 41)
        axis.contourf(x, y, u, levels=21, cmap="RdBu_r", vmin=-1.3, vmax=1.3)
        axis.set(title=f"{name}\nerror {errors[name]:.3f}", xticks=[], yticks=[], aspect="equal")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(arguments=None):
    """Run the example; returns the error by method."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="check that it runs")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("jno_poisson.png"))
    options = parser.parse_args(arguments)
    size, pretraining, adapting = (0.5, 3, 2) if options.quick else (0.06, 2000, 500)

    def network(module=None):
        if module is None:
            sizes = {"hidden_dims": 48, "num_layers": 3, "activation": jnp.tanh}
            module = foundax.mlp(2, output_dim=1, **sizes, key=jax.random.key(0))
        return jno.nn.wrap(module)

    net = network().optimizer(optax.adam(2e-3))
    solve(net, 0.0, size, pretraining)
    pretrained = net.module
    modules = {"pretrained": pretrained}
    errors = {"pretrained": error(pretrained, AMPLITUDE)}
    print(f"pretrained: error {error(pretrained, 0.0):.3f} there, {errors['pretrained']:.3f} here")

    def copy():  # jNO donates the arrays that it trains
        return jax.tree.map(lambda a: a.copy() if eqx.is_array(a) else a, pretrained)

    for name in ("from nothing", "full fine-tuning", *METHODS):
        net = network(None if name == "from nothing" else copy())
        if name in METHODS:
            net.freeze().lora(alpha=16.0, specs=RANKS, wrapper=name)
        net.optimizer(optax.adam(5e-3 if name in METHODS else 2e-3))
        logs = solve(net, AMPLITUDE, size, adapting).training_logs[-1]
        modules[name], errors[name] = net.module, error(net.module, AMPLITUDE)
        print(
            f"{name:17} error {errors[name]:.3f}, {logs['trainable_params']:,} parameters trained"
        )
        if name == METHODS[-1]:
            save_adapters(
                jno_lora_jno.trained_adapters(net), options.output.with_suffix(".safetensors")
            )
    draw(options.output, modules, errors)
    return errors


if __name__ == "__main__":
    main()
