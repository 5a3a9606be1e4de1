"""How good a model is, on each group of scans that did not train it."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from ._data import Digits, Scans


@dataclasses.dataclass(frozen=True)
class Score:
    """Accuracies from 0 to 1, and the mean cross-entropy on the validation scans.

    `validation` and `validation_loss` choose; `target` and `source`, on the test scans, are only
    reported.
    """

    validation: float
    validation_loss: float
    target: float
    source: float

    @property
    def rank(self) -> tuple[float, float]:
        """What decides between two models: accuracy, then (150 scans often tie) the loss."""
        return self.validation, -self.validation_loss


def measure(model: PyTree, digits: Digits) -> Score:
    """The score of `model`, which maps one scan to ten logits."""
    groups = (digits.validation, digits.test_target, digits.test_source)
    # One call for all groups, so that each kind of model is compiled once.
    logits = logits_of(model, jnp.concatenate([scans.images for scans in groups]))
    ends = np.cumsum([len(scans) for scans in groups])[:-1]
    validation, target, source = jnp.split(logits, ends)
    loss = optax.softmax_cross_entropy_with_integer_labels(validation, digits.validation.labels)
    return Score(
        validation=_accuracy(validation, digits.validation),
        validation_loss=float(loss.mean()),
        target=_accuracy(target, digits.test_target),
        source=_accuracy(source, digits.test_source),
    )


@eqx.filter_jit
def logits_of(model: PyTree, images: Float[Array, "scans 1 8 8"]) -> Float[Array, "scans 10"]:
    """The logits of all scans."""
    return jax.vmap(model)(images)


def _accuracy(logits: Float[Array, "scans 10"], scans: Scans) -> float:
    return float((logits.argmax(axis=-1) == scans.labels).mean())
