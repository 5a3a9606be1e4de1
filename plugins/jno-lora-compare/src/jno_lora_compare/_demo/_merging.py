"""The end of the demo: the best model without its adapters, on disk and back."""

import dataclasses
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp

from jno.lora import merge_lora

from ._candidates import Outcome
from ._data import Digits
from ._measuring import logits_of
from ._model import Classifier


@dataclasses.dataclass(frozen=True)
class Merged:
    """How the merged model, read back from `path`, compares with the adapted one.

    - `difference`: the largest between two logits; `scale`: the largest logit itself.
    - `same`: how many of `total` test scans both call by the same digit.
    """

    path: Path
    difference: float
    scale: float
    same: int
    total: int


def save_and_compare(best: Outcome, digits: Digits, path: Path) -> Merged:
    """Merge, write, read into a plain `Classifier`, and compare on the test scans of both domains.

    The reader needs Equinox and the class of the model, and nothing of adapters.
    """
    adapted = best.row.model
    eqx.tree_serialise_leaves(path, merge_lora(adapted))
    skeleton = eqx.filter_eval_shape(Classifier, jax.random.key(0))
    merged = eqx.tree_deserialise_leaves(path, skeleton)

    images = jnp.concatenate([digits.test_target.images, digits.test_source.images])
    one, other = logits_of(adapted, images), logits_of(merged, images)
    return Merged(
        path=path,
        difference=float(jnp.abs(one - other).max()),
        scale=float(jnp.abs(one).max()),
        same=int((one.argmax(axis=-1) == other.argmax(axis=-1)).sum()),
        total=len(images),
    )
