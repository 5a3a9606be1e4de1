"""Optimisers for adapters, as optax transformations: `jno_lora_train.optim`.

    from jno_lora_train.optim import lora_plus

    optimiser = lora_plus(optax.adam(1e-4), ratio=16)

They take the trees that `net.partition()` returns. The class of an adapter, also from a third
party, lists in `factor_sides` which fields are factors of a product `B A`.
"""

from jno.lora.extending import imported_for

from .._trainer import ConjugateState

with imported_for("jno_lora_train.optim", "train", "optax"):
    from ._conjugate import conjugate
    from ._preconditioners import PreconditionerState, lora_fa, scale_by_riemannian
    from ._rates import lora_plus, path_labels, side_labels
    from ._subspaces import Subspaces, stay_orthogonal

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
