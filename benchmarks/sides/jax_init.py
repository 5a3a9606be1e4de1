"""Initialisers that decompose the weight, and the energy they capture. Serves ours and jNO."""

import importlib
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ._models import matrix_with_spectrum
from ._timing import Subject, timed


def build(case: dict[str, Any], device: str) -> Subject:
    """Applying one adapter to one layer; the adapter `"svd"` is the full decomposition alone."""
    size, rank = case["size"], case["rank"]
    W = matrix_with_spectrum(case["spectrum"], size)
    array, key = jnp.asarray(W), jax.random.key(1)
    queue = device == "gpu"
    if case["adapter"] == "svd":

        def decompose() -> Any:
            return jnp.linalg.svd(array, full_matrices=False)

        return Subject({}, {"init": timed(decompose, jax.block_until_ready, queue=queue)})
    lora = importlib.import_module("jno.lora")
    cls = getattr(lora, case["adapter"])
    layer = eqx.nn.Linear(size, size, key=key)
    layer = eqx.tree_at(lambda layer: layer.weight, layer, array)

    def init() -> Any:
        adapted = lora.apply_lora(layer, rank, float(rank), key=key, wrappers=[cls])  # jNO's word
        return eqx.filter(adapted, eqx.is_array)

    subject = Subject({}, {"init": timed(init, jax.block_until_ready, queue=queue)})
    subject.facts["energy"] = captured_energy(W, np.asarray(init().lora_B))
    return subject


def captured_energy(W: np.ndarray, B: np.ndarray) -> float:
    """The fraction of the energy of the `r` largest singular values that `B` captures.

    **Arguments:**

    - `W`: the matrix, `(out, in)`.
    - `B`: `(out, r)`; only the space of its columns counts.

    **Returns:** `|| Q^T W ||^2 / (s_1^2 + … + s_r^2)` with `Q` an orthonormal basis of `B`. It is 1
    for the first singular vectors.
    """
    W = W.astype(np.float64)
    basis = np.linalg.qr(B.astype(np.float64))[0]
    largest = np.linalg.eigvalsh(W @ W.T)[-basis.shape[1] :]
    return float(np.sum((basis.T @ W) ** 2) / np.sum(largest))
