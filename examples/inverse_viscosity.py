"""The viscosity of experiments, from a surrogate that knows a range of viscosities.

A convolutional network learns to solve the viscous Burgers equation

    u_t + u u_x = nu u_xx,    x in [0, 2 pi) periodic,    u(x, 0) -> u(x, 1)

at `nu = 0.1`. A conditional adapter then learns a few simulations at four smaller viscosities. An
experiment is four simulations with a viscosity that nobody tells: `fit` recovers it from the fields
alone. The fits of all experiments are one program.

    pip install "jno-lora[conditional,zoo]" optax
    python examples/inverse_viscosity.py

It takes half a minute on two cores, seconds with `--quick`.
"""

import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from jno.lora import Net
from jno_lora_conditional import Conditional, Powers, at, fit
from jno_lora_train.optim import conjugate

POINTS, SOURCE = 64, 0.1
TRAINING = jnp.array([0.08, 0.06, 0.045, 0.035])


def solve(u, nu, steps=200):
    """The field `u`, `(points,)`, after one unit of time, by Fourier modes and Runge-Kutta."""
    k = jnp.arange(u.size // 2 + 1)
    keep, dt = k < u.size / 3, 1 / steps
    half = jnp.exp(-nu * k**2 * dt / 2)  # diffusion over half a step, exactly

    def rate(v):
        return -0.5j * k * keep * jnp.fft.rfft(jnp.fft.irfft(v * keep, u.size) ** 2)

    def step(v, _):
        a = rate(v)
        b = rate(half * (v + dt / 2 * a))
        c = rate(half * v + dt / 2 * b)
        d = rate(half**2 * v + dt * half * c)
        return half**2 * v + dt / 6 * (half**2 * a + 2 * half * (b + c) + d), None

    return jnp.fft.irfft(jax.lax.scan(step, jnp.fft.rfft(u), length=steps)[0], u.size)


@jax.jit
def simulate(keys, nus):
    """A random field for each key, and its solution at its viscosity: twice `(number, POINTS)`."""

    def run(key, nu):
        k = jnp.arange(1.0, 5.0)
        size = jnp.exp(-((k / 2) ** 2) / 2)
        a, b = jax.random.normal(key, (2, 4)) * size / jnp.linalg.norm(size)
        angle = k[:, None] * jnp.linspace(0, 2 * jnp.pi, 2 * POINTS, endpoint=False)
        field = a @ jnp.cos(angle) + b @ jnp.sin(angle)
        return field[::2], solve(field, nu)[::2]

    return jax.lax.map(lambda pair: run(*pair), (keys, nus), batch_size=32)


class Surrogate(eqx.Module):
    """Convolutions around the circle. They predict how the field changes."""

    layers: list

    def __init__(self, key, width):
        sizes = [1, width, width, width, width, 1]
        pairs = zip(sizes[:-1], sizes[1:], jax.random.split(key, 5), strict=True)
        circle = {"padding": "SAME", "padding_mode": "CIRCULAR"}
        self.layers = [eqx.nn.Conv1d(i, o, 11, **circle, key=key) for i, o, key in pairs]

    def __call__(self, field):
        """The field after one unit of time."""
        *hidden, last = self.layers
        h = field[None]
        for layer in hidden:
            h = jax.nn.gelu(layer(h))
        return field + last(h)[0]


def error(model, fields, solutions):
    """The mean square of the error over the mean square of the solutions."""
    gap = jax.vmap(model)(fields) - solutions
    return jnp.mean(gap**2) / jnp.mean(solutions**2)


def train(trainable, frozen, loss, data, steps, rate):
    """Minimise `loss(model, *batch)` by Adam. A batch has 8 random simulations of each value."""
    # A surrogate with complex weights, such as a spectral layer, needs `conjugate`.
    optimiser = optax.chain(conjugate(), optax.adam(optax.cosine_decay_schedule(rate, steps)))

    @eqx.filter_jit
    def step(trainable, state, key):
        numbers, shift = jax.random.randint(key, (2, 8), 0, data[0].shape[-2])
        # The equation is the same at every place: a shifted simulation is a simulation.
        batch = [jnp.roll(fields[..., numbers, :], shift[0], axis=-1) for fields in data]
        gradient = eqx.filter_grad(lambda part: loss(eqx.combine(part, frozen), *batch))(trainable)
        updates, state = optimiser.update(gradient, state, trainable)
        return eqx.apply_updates(trainable, updates), state

    state = optimiser.init(trainable)
    for key in jax.random.split(jax.random.key(0), steps):
        trainable, state = step(trainable, state, key)
    return trainable


def main(arguments=()):
    """Run the example; returns the true and the recovered viscosities."""
    many, few, number, steps, width = 256, 16, 64, 500, 24
    if "--quick" in arguments:
        many, few, number, steps, width = 16, 2, 8, 3, 6
    keys = jax.random.split(jax.random.key(0), 5)

    model = Surrogate(keys[0], width)
    data = simulate(jax.random.split(keys[1], many), jnp.full(many, SOURCE))
    arrays, static = eqx.partition(model, eqx.is_inexact_array)
    model = eqx.combine(train(arrays, static, error, data, steps, 3e-3), static)

    # A few simulations of each training value: `(values, few, POINTS)`.
    fields = simulate(jax.random.split(keys[2], 4 * few), jnp.repeat(TRAINING, few))
    fields = [u.reshape(4, few, POINTS) for u in fields]
    net = Net(model, key=keys[3]).freeze().lora(rank=4, alpha=8)
    conditional = Conditional(net, Powers(source=SOURCE, unit=0.065))

    def loss(conditional, *batch):
        errors = jax.vmap(lambda nu, u, v: error(at(conditional, nu), u, v))(TRAINING, *batch)
        return jnp.mean(errors)

    trainable, frozen = conditional.partition()
    conditional = conditional.update(train(trainable, frozen, loss, fields, steps, 3e-3))

    # The experiments, at viscosities between the training values and beyond them.
    true = jnp.linspace(0.025, SOURCE, number)
    keys = jax.random.split(keys[4], 4 * number)
    observed = [u.reshape(number, 4, POINTS) for u in simulate(keys, jnp.repeat(true, 4))]

    @jax.jit
    @jax.vmap
    def recover(fields, solutions):
        grid = jnp.linspace(0.02, 0.11, 7)
        return fit(conditional, lambda model: error(model, fields, solutions), grid, steps=8).z

    recovered = recover(*observed)
    print(conditional.summary().caption)
    print("true viscosity      mean   bias  spread")
    for low, high in ((0.025, 0.035), (0.035, 0.05), (0.05, 0.07), (0.07, 0.1)):
        inside = (low <= true) & (true < high)
        gap = (recovered - true)[inside]
        place = "" if low >= TRAINING.min() else "   (beyond the training values)"
        print(f"{low:.3f} to {high:.3f}   {jnp.mean(recovered[inside]):.4f}", end="")
        print(f" {jnp.mean(gap):+.4f}  {jnp.std(gap):.4f}{place}")
    return true, recovered


if __name__ == "__main__":
    main(sys.argv[1:])
