"""One adapter for every viscosity: a small operator of the heat equation, adapted and inverted.

pip install "jno-lora[zoo,train,conditional]" jno-lora-foundax
python examples/first_operator.py
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from foundax import fno1d

from jno.lora import Net
from jno_lora_conditional import Conditional, Powers, at, fit
from jno_lora_train import Trainer

SOURCE = 0.1  # the viscosity of the pretraining
VALUES = (0.08, 0.06, 0.045, 0.03)  # the viscosities of the simulations to adapt to


def simulate(seed, viscosity, number):
    """Fields at the times 0 and 1. A closed formula stands for your solver."""
    before = jax.random.normal(jax.random.key(seed), (number, 32))
    decay = jnp.exp(-viscosity * jnp.arange(17.0) ** 2)
    return before, jnp.fft.irfft(jnp.fft.rfft(before) * decay)


def error(model, data):
    """The relative error of the model's fields at time 1."""
    before, after = data
    fields = jax.vmap(lambda field: model(field[:, None])[0, :, 0])(before)
    return jnp.linalg.norm(fields - after) / jnp.linalg.norm(after)


def train(trainable, frozen, loss, data, steps=300):
    """The trained arrays."""
    trainer = Trainer(loss, optax.adam(optax.cosine_decay_schedule(1e-2, steps)))
    run = trainer.start(trainable)
    for _ in range(steps):
        run, _ = trainer.step(run, frozen, data)
    return run.trainable


def pretrained(steps=300):
    """A Fourier neural operator that knows the viscosity `SOURCE`."""
    model = fno1d(1, 16, 8, n_layers=2, key=jax.random.key(0))
    arrays, static = eqx.partition(model, eqx.is_inexact_array)
    return eqx.combine(train(arrays, static, error, simulate(0, SOURCE, 256), steps), static)


def adapt(conditional, data, steps):
    """`conditional`, trained on the simulations of all values at once."""

    def loss(conditional, data):
        return jax.vmap(lambda value, *pairs: error(at(conditional, value), pairs))(*data).sum()

    return conditional.update(train(*conditional.partition(), loss, data, steps))


def main(steps=300):
    """Print the errors at a viscosity without training data, and a viscosity that was found."""
    model = pretrained(steps)
    seeds, values = jnp.arange(1, 1 + len(VALUES)), jnp.array(VALUES)
    data = values, *jax.vmap(lambda seed, value: simulate(seed, value, 16))(seeds, values)
    unseen, one = simulate(9, 0.05, 64), simulate(10, 0.05, 1)

    # CP for the spectral weights; LoRA for the linear layers and the convolutions.
    specs = [{"wrapper": "cp", "rank": 4}, {"wrapper": "lora", "rank": 1}]
    net = Net(model).freeze().lora(specs=specs)
    conditional = Conditional(net, Powers(source=SOURCE, unit=0.07))
    conditional = adapt(conditional, data, steps)
    adapted = at(conditional, 0.05)  # an ordinary adapted model, at any viscosity
    found = fit(conditional, lambda model: error(model, one), grid=jnp.linspace(0.03, 0.1, 8))

    print(conditional.summary())
    print(f"error at 0.05: {error(model, unseen):.2f} before, {error(adapted, unseen):.2f} after")
    print(f"viscosity of one new simulation: {found.z:.3f}")
    return conditional, found


if __name__ == "__main__":
    main()
