"""The demo's data: real scans of digits, either upright and clean, or rotated and noisy."""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from scipy import ndimage
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

# A classifier of upright digits classifies about half of the shifted digits correctly.
ROTATION = 30.0  # degrees
NOISE = 0.15  # standard deviation, where a pixel ranges from 0 to 1

# Sizes of the groups. The remaining scans of the 1797 are for pretraining.
TEST, TRAINING, VALIDATION = 500, 150, 150


@dataclasses.dataclass(frozen=True)
class Scans:
    """Scans of one domain, shaped for a convolution, and their digits."""

    images: Float[Array, "scans 1 8 8"]
    labels: Int[Array, " scans"]

    def __len__(self) -> int:
        return len(self.labels)


class Digits(NamedTuple):
    """Four disjoint groups of scans, so that no test scan was seen before in either domain."""

    pretraining: Scans  # source domain, many
    training: Scans  # target domain, few
    validation: Scans  # target domain, few, to choose by
    test_source: Scans
    test_target: Scans  # the scans of `test_source` in the target domain


def split(labels: Int[np.ndarray, " scans"], seed: int) -> dict[str, np.ndarray]:
    """Draw the indices of the scans in each group at random, each digit in proportion."""
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
    noise = np.random.default_rng(seed).normal(scale=NOISE, size=images.shape)
    rotated = ndimage.rotate(images, ROTATION, axes=(1, 2), reshape=False, order=1)
    shifted = np.clip(rotated + noise, 0, 1)

    def scans(domain: np.ndarray, name: str) -> Scans:
        images, digits = domain[groups[name], None], labels[groups[name]]
        return Scans(jnp.asarray(images, jnp.float32), jnp.asarray(digits, jnp.int32))

    return Digits(
        pretraining=scans(images, "pretraining"),
        training=scans(shifted, "training"),
        validation=scans(shifted, "validation"),
        test_source=scans(images, "test"),
        test_target=scans(shifted, "test"),
    )
