"""The demo's data: real scans of digits, upright and clean, and the same kind rotated and noisy."""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from scipy import ndimage
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

# The shift: chosen so that a classifier of upright digits is right on about half of them, while a
# person still reads them.
ROTATION = 30.0  # degrees
NOISE = 0.15  # standard deviation, where a pixel ranges from 0 to 1

# How many of the 1797 scans go where; what is left over is for pretraining. No scan is in two
# groups, so nothing that is tested has been seen upright, rotated or otherwise.
TEST, TRAINING, VALIDATION = 500, 150, 150


@dataclasses.dataclass(frozen=True)
class Scans:
    """Scans of one domain, as a convolution takes them, and the digits they show."""

    images: Float[Array, "scans 1 8 8"]
    labels: Int[Array, " scans"]

    def __len__(self) -> int:
        return len(self.labels)


class Digits(NamedTuple):
    """Four disjoint groups of scans, the last of them in both domains.

    - `pretraining`: source domain, many.
    - `training`, `validation`: target domain, few, to learn from and to choose by.
    - `test_source`, `test_target`: the same scans in either domain. Only reported on.
    """

    pretraining: Scans
    training: Scans
    validation: Scans
    test_source: Scans
    test_target: Scans


def split(labels: Int[np.ndarray, " scans"], seed: int) -> dict[str, np.ndarray]:
    """The numbers of the scans in each group, drawn at random, each digit in proportion."""

    def draw(group: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
        rest, drawn = train_test_split(
            group, test_size=size, stratify=labels[group], random_state=seed
        )
        return np.asarray(rest), np.asarray(drawn)

    rest, groups = np.arange(len(labels)), dict[str, np.ndarray]()
    for name, size in (("test", TEST), ("validation", VALIDATION), ("training", TRAINING)):
        rest, groups[name] = draw(rest, size)
    return groups | {"pretraining": rest}


def load(seed: int) -> Digits:
    """Scikit-learn's digits in both domains, split and shifted as `seed` decides."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).reshape(-1, 8, 8)
    groups = split(labels, seed)

    # Every scan is shifted once, so its noise does not depend on the group that it fell into.
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
    """The target domain: rotated about the centre, then noisy, within the range of a pixel."""
    rotated = ndimage.rotate(images, ROTATION, axes=(1, 2), reshape=False, order=1)
    return np.clip(rotated + rng.normal(scale=NOISE, size=images.shape), 0, 1)
