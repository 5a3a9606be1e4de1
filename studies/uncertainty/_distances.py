"""What may tell that an input is unlike the training inputs: three distances, without targets."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jno_lora_uncertainty import Ensemble

from ._spreads import outputs

DISTANCES = ("spread", "spectrum", "output")


def _spectrum(x: Any) -> Any:
    """The logarithm of the power of each wave number, of fields or of values and fields."""
    x = x[1] if isinstance(x, tuple) else x
    return jnp.log(jnp.abs(jnp.fft.rfft(x, axis=-1)) ** 2 + 1e-6)


def _apart(features: Any, seen: Any) -> Any:
    """The Mahalanobis distance from the training features, with a ridge of a tenth of the mean."""
    mean, centred = jnp.mean(seen, axis=0), seen - jnp.mean(seen, axis=0)
    covariance = centred.T @ centred / len(seen)
    ridge = 0.1 * jnp.mean(jnp.diag(covariance)) * jnp.eye(len(covariance))
    solved = jnp.linalg.solve(covariance + ridge, (features - mean).T).T
    return jnp.sqrt(jnp.sum((features - mean) * solved, axis=-1))


def distances(
    ensemble: Ensemble, seen: Any, sets: Mapping[str, Any], found: Mapping[str, Any]
) -> dict[str, float]:
    """For each distance and each kind of unlike inputs, how well they are told apart from new
    inputs like the training inputs: the probability that the unlike input is farther (AUROC).

    Also the coverage of intervals of 90 % on the unlike inputs.
    """
    solved = jnp.mean(outputs(ensemble, seen), axis=0)
    features = _spectrum(seen), _spectrum(solved)

    def tried(name: str) -> tuple[Any, ...]:
        (inputs, _), (mean, std, _) = sets[name], found[name]
        of_input, of_output = _spectrum(inputs), _spectrum(mean)
        return (
            jnp.mean(std, axis=-1),
            _apart(of_input, features[0]),
            _apart(of_output, features[1]),
        )

    content: dict[str, float] = {}
    for name in sets.keys() - {""}:
        mean, std, _ = found[name]
        inside = jnp.abs(sets[name][1] - mean) <= 1.6449 * std
        content[f"{name}_coverage"] = float(jnp.mean(inside))
        for way, unlike, like in zip(DISTANCES, tried(name), tried(""), strict=True):
            unlike, like = np.asarray(unlike), np.asarray(like)
            content[f"{name}_{way}_auroc"] = float(np.mean(unlike[:, None] > like))
    return content
