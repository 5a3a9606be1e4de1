"""A neural operator moves to another viscosity: which adapter needs the fewest simulations?

A Fourier neural operator learns the solution operator of the viscous Burgers equation

    u_t + u u_x = nu u_xx,    x in [0, 2 pi) periodic,    u(x, 0) -> u(x, 1)

at `nu = 0.1`, from many simulations. At `nu = 0.02` fronts are five times as steep, and only few
simulations exist. Full fine-tuning and adapters learn from 2 to 16 of them.

    pip install "jno-lora[zoo]" jno-lora-foundax optax matplotlib
    python examples/burgers_operator.py

It takes some minutes on two cores, seconds with `--quick`, and writes `burgers.png`.
"""

import argparse
import pathlib

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import optax
from foundax import fno1d

from jno.lora import Net

GRID, TIME = 64, 1.0
SOURCE, TARGET = 0.1, 0.02  # viscosities
LAYERS = "spectral_layers|proj1"  # the lifting and the last projection have a rank of 2 and 1
# Each method where it has an adapter; spectral weights always by LoRA, one update per mode.
METHODS = {name: [name, "lora"] for name in ("lora", "pissa", "dora", "lokr", "oft")}
RATES = {"full fine-tuning": 1e-3}


def initial_fields(key, number):
    """Random smooth periodic fields, `(number, 4 * GRID)`, of standard deviation 1."""
    modes = jnp.arange(1, 5)
    size = jnp.exp(-0.5 * (modes / 2.0) ** 2)
    size = size / jnp.sqrt(jnp.sum(size**2))
    a, b = jax.random.normal(key, (2, number, modes.size)) * size
    angle = modes[:, None] * jnp.linspace(0, 2 * jnp.pi, 4 * GRID, endpoint=False)[None, :]
    return a @ jnp.cos(angle) + b @ jnp.sin(angle)


@eqx.filter_jit
def solve(u, viscosity, steps=800):
    """Solve for `u` at time `TIME` by a pseudo-spectral method with 2/3 dealiasing.

    Fourth-order Runge-Kutta steps integrate `exp(nu k^2 t) u_k`, so diffusion is exact.
    """
    n = u.shape[-1]
    k = jnp.arange(n // 2 + 1)
    keep, dt = (k < n / 3)[None, :], TIME / steps
    half = jnp.exp(-viscosity * k**2 * dt / 2)[None, :]

    def rate(v):  # -(u^2 / 2)_x, without the modes that u^2 would alias
        return -0.5j * k[None, :] * keep * jnp.fft.rfft(jnp.fft.irfft(v * keep, n) ** 2)

    def step(v, _):
        a = rate(v)
        b = rate(half * (v + dt / 2 * a))
        c = rate(half * v + dt / 2 * b)
        d = rate(half**2 * v + dt * half * c)
        return half**2 * v + dt / 6 * (half**2 * a + 2 * half * (b + c) + d), None

    v, _ = jax.lax.scan(step, jnp.fft.rfft(u), length=steps)
    return jnp.fft.irfft(v, n)


def simulate(key, number, viscosity):
    """Return inputs `(number, GRID, 2)`, field and coordinate, and solutions `(number, GRID)`."""
    fields = initial_fields(key, number)
    x = jnp.broadcast_to(jnp.linspace(-1, 1, GRID, endpoint=False), (number, GRID))
    return jnp.stack([fields[:, ::4], x], axis=-1), solve(fields, viscosity)[:, ::4]


def error(model, inputs, solutions):
    """The relative L2 error of each field."""
    off = jax.vmap(model)(inputs)[:, 0, :, 0] - solutions
    return jnp.linalg.norm(off, axis=-1) / jnp.linalg.norm(solutions, axis=-1)


def train(net, inputs, solutions, steps, rate, batch=32):
    """Train the trainable part of `net` by Adam, on random batches with a decaying rate."""
    trainable, frozen = net.partition()
    optimiser = optax.adam(optax.cosine_decay_schedule(rate, steps))
    batch = min(batch, len(inputs))

    @eqx.filter_jit
    def step(trainable, state, frozen, inputs, solutions, shift):
        # The equation is the same at every x, so a shifted simulation is a new simulation.
        inputs = inputs.at[..., 0].set(jnp.roll(inputs[..., 0], shift, axis=-1))
        solutions = jnp.roll(solutions, shift, axis=-1)

        def loss(trainable):
            return jnp.mean(error(eqx.combine(trainable, frozen), inputs, solutions))

        updates, state = optimiser.update(eqx.filter_grad(loss)(trainable), state)
        return eqx.apply_updates(trainable, updates), state

    state, rng = optimiser.init(trainable), np.random.default_rng(0)
    for _ in range(steps):
        some = rng.choice(len(inputs), batch, replace=False)
        shift = jnp.asarray(rng.integers(GRID))
        trainable, state = step(trainable, state, frozen, inputs[some], solutions[some], shift)
    return net.update(trainable)


def draw(path, errors, counts, models, inputs, solutions):
    """Draw the final fields for two initial ones, and the error by number of simulations."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    x = np.linspace(0, 2 * np.pi, GRID, endpoint=False)
    for axis, field, solution in zip(axes, inputs[:2], solutions[:2], strict=False):
        axis.plot(x, field[:, 0], color="0.8", label="start")
        axis.plot(x, solution, color="black", label=f"solution, nu = {TARGET}")
        for name, model in models.items():
            axis.plot(x, model(field)[0, :, 0], "--", lw=1.3, label=name)
        axis.set_xlabel("x")
    axes[0].legend(fontsize="x-small")
    for name, values in errors.items():
        axes[2].plot(counts, values, "o-", lw=1, label=name)
    before = error(models["pretrained"], inputs, solutions).mean()
    axes[2].axhline(before, color="0.4", ls=":", label="pretrained")
    axes[2].set(xscale="log", yscale="log", xlabel="simulations", ylabel="relative error")
    axes[2].minorticks_off()
    axes[2].set_xticks(counts, counts)
    axes[2].set_yticks([0.1, 0.2, 0.3, 0.4], ["0.1", "0.2", "0.3", "0.4"])
    axes[2].legend(fontsize="x-small")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(arguments=None):
    """Run the example; returns the mean test error by method and number of simulations."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="does it run?")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("burgers.png"))
    options = parser.parse_args(arguments)
    quick = options.quick
    sizes = (32, 4, 8) if quick else (1024, 16, 128)
    pretraining, adapting, counts = (5, 5, (4,)) if quick else (2000, 300, (2, 4, 8, 16))

    keys = jax.random.split(jax.random.key(0), 5)
    settings = zip(keys, sizes, (SOURCE, TARGET, TARGET), strict=False)
    many, few, test = (simulate(*setting) for setting in settings)
    model = train(Net(fno1d(2, 32, 16, n_layers=3, key=keys[3])), *many, pretraining, 2e-3).module
    before = {"pretrained": model}
    print(f"pretrained: error {error(model, *many).mean():.3f} at nu = {SOURCE}", end=", ")
    print(f"{error(model, *test).mean():.3f} at nu = {TARGET}")

    errors, models = {}, {}
    for name in ("full fine-tuning", *(("lora",) if quick else METHODS)):
        for count in counts:
            net = Net(model, key=keys[4])
            if name in METHODS:
                net.freeze().lora(rank=4, alpha=8, target=LAYERS, wrapper=METHODS[name])
            rate = RATES.get(name, 3e-3)
            train(net, *(part[:count] for part in few), adapting, rate)
            errors.setdefault(name, []).append(float(error(net.module, *test).mean()))
        models[name] = net.module
        print(f"{name:17}", *(f"{e:.3f}" for e in errors[name]), f"from {counts} simulations")
    shown = before | {name: models[name] for name in ("full fine-tuning", "lora")}
    draw(options.output, errors, counts, shown, *test)
    return errors


if __name__ == "__main__":
    main()
