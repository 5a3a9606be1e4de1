"""Error bars for a model of your own: five small adapters, each without a fold of the data.

pip install "jno-lora[zoo,train,uncertainty]"
python examples/error_bars.py
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from jno.lora import Net
from jno_lora_train import Trainer
from jno_lora_uncertainty import Ensemble, calibrate, folds, interval, predict


def loss(model, data):
    """Replace this by the loss of your model on a batch."""
    x, y = data
    return jnp.mean((jax.vmap(model)(x) - y) ** 2)


def simulate(seed, number):
    """Replace this by your data: a decay whose noise grows with the input."""
    keys = jax.random.split(jax.random.key(seed))
    x = jax.random.uniform(keys[0], (number, 1), minval=0, maxval=3)
    return x, jnp.exp(-x) + 0.1 * x * jax.random.normal(keys[1], x.shape)


def main(steps=300):
    """Print the calibration, a prediction, and how many new points the intervals hold."""
    model = eqx.nn.MLP(1, 1, 32, 2, jnp.tanh, key=jax.random.key(0))  # replace: yours, pretrained
    x, y = data = simulate(1, 64)

    parts = folds(len(x), 5, key=jax.random.key(2))
    ensemble = Ensemble(
        lambda key: Net(model, key=key).freeze().lora(rank=2), 5, key=jax.random.key(3)
    )
    trainer = Trainer(Ensemble.loss(loss), optax.adam(1e-2))
    run = trainer.fit(*ensemble.partition(), [parts.training(data)] * steps)
    calibrated = calibrate(ensemble.update(run.trainable), x, y, parts)

    print(calibrated.summary())
    mean, std = predict(calibrated, jnp.array([1.5]))
    print(f"at 1.5: {mean[0]:.2f} ± {std[0]:.2f}")
    x, y = simulate(4, 1000)
    lower, upper = jax.vmap(lambda x: interval(calibrated, x, 0.9))(x)
    held = jnp.mean((lower <= y) & (y <= upper))
    print(f"new points inside the intervals of 90 %: {100 * held:.0f} %")
    return calibrated, held


if __name__ == "__main__":
    main()
