"""Optimisers that know adapters: the door to `jno_lora_train.optim`."""

from ._errors import imported_for

with imported_for("jno.lora.optim", "optim", "jno_lora_train", "optax"):
    from jno_lora_train.optim import (
        ConjugateState,
        PreconditionerState,
        Subspaces,
        conjugate,
        lora_fa,
        lora_plus,
        path_labels,
        scale_by_riemannian,
        side_labels,
        stay_orthogonal,
    )

__all__ = [
    "ConjugateState",
    "PreconditionerState",
    "Subspaces",
    "conjugate",
    "lora_fa",
    "lora_plus",
    "path_labels",
    "scale_by_riemannian",
    "side_labels",
    "stay_orthogonal",
]
