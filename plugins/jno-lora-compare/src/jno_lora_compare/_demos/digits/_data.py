"""The demo's data: real scans of digits, upright and clean, or rotated and noisy."""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from scipy import ndimage
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

# The shift. A classifier of upright digits is right on about half of the shifted digits, which a
# person still reads.
ROTATION = 30.0  # degrees
NOISE = 0.15  # standard deviation, where a pixel ranges from 0 to 1

# Sizes of the groups. The remaining scans of the 1797 are for pretraining. No scan is in two
# groups, so no test scan was seen before, in either domain.
TEST, TRAINING, VALIDATION = 500, 150, 150


@dataclasses.dataclass(frozen=True)
class Scans:
    """Scans of one domain, shaped for a convolution, and their digits."""

    images: Float[Array, "scans 1 8 8"]
    labels: Int[Array, " scans"]

    def __len__(self) -> int:
        return len(self.labels)


class Digits(NamedTuple):
    """Four disjoint groups of scans; the test group in both domains.

    - `pretraining`: source domain, many.
    - `training`, `validation`: target domain, few, to train on and to choose by.
    - `test_source`, `test_target`: the same scans in both domains, only for the report.
    """

    pretraining: Scans
    training: Scans
    validation: Scans
    test_source: Scans
    test_target: Scans


def split(labels: Int[np.ndarray, " scans"], seed: int) -> dict[str, np.ndarray]:
    """The indices of the scans in each group, drawn at random, each digit in proportion."""
    remaining, groups = np.arange(len(labels)), dict[str, np.ndarray]()
    for name, size in (("test", TEST), ("validation", VALIDATION), ("training", TRAINING)):
        digits = labels[remaining]
        split = train_test_split(remaining, test_size=size, stratify=digits, random_state=seed)
        remaining, groups[name] = map(np.asarray, split)
    return groups | {"pretraining": remaining}


def load(seed: int) -> Digits:
    """Scikit-learn's digits in both domains. `seed` decides the split and the noise."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).reshape(-1, 8, 8)
    groups = split(labels, seed)

    # Shift all scans at once, so that a scan's noise does not depend on its group.
    shifted = shift(images, np.random.default_rng(seed))

    def scans(domain: np.ndarray, name: str) -> Scans:
        group = groups[name]
        return Scans(
            jnp.asarray(domain[group, None], jnp.float32), jnp.asarray(labels[group], jnp.int32)
        )

    return Digits(
        pretraining=scans(images, "pretraining"),
        training=scans(shifted, "training"),
        validation=scans(shifted, "validation"),
        test_source=scans(images, "test"),
        test_target=scans(shifted, "test"),
    )


def shift(
    images: Float[np.ndarray, "scans 8 8"], rng: np.random.Generator
) -> Float[np.ndarray, "scans 8 8"]:
    """The scans rotated about the centre, then with noise, clipped to the range of a pixel."""
    rotated = ndimage.rotate(images, ROTATION, axes=(1, 2), reshape=False, order=1)
    return np.clip(rotated + rng.normal(scale=NOISE, size=images.shape), 0, 1)
