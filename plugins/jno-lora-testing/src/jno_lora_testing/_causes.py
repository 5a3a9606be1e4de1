"""Which failure may be the cause of which."""

import functools
from collections.abc import Mapping

# By check, the checks that may fail because this check fails. `contract` comes before all.
CONSEQUENCES: Mapping[str, tuple[str, ...]] = {
    "applies-to-total": (
        *("applies-to-needs-arrays", "applies-to-not-greedy", "answers", "stacked-layers"),
        *("sharding", "calibration", "bank", "conditional"),
    ),
    "trainable-fields": (
        *("parameter-count", "state-round-trip", "adapter-acts", "gradients", "purity", "jit"),
        *("eval-shape", "stacked-layers"),
    ),
    "key-forms": ("jit", "eval-shape", "constructor-vmap-and-scan"),
    "purity": ("jit", "vmap", "checkpoint", "state-round-trip"),
    "answers": ("stacked-layers",),
    "adapter-acts": ("merge-equals-call", "law", "gradients", "rank-gate"),
    "merge-restores-form": ("merge-equals-call", "reads-like-the-layer", "sharding"),
    "merge-equals-call": (
        *("identity-at-init", "law", "ranks", "alpha", "special-inputs", "subclass-merge"),
        *("trained-in-half-precision", "double-precision", "merge-gradients", "shared-arrays"),
        *("input-derivatives", "input-jet", "residual-gradients", "stacked-layers"),
        *("low-rank-update", "low-rank-scale", "bank", "conditional"),
    ),
    "identity-at-init": (
        *("identity-in-half-precision", "double-precision", "ranks", "alpha", "subclass"),
        *("stacked-layers", "poor-statistics", "conditional"),
    ),
    "law": ("ranks", "alpha", "low-rank-update", "low-rank-scale"),
    "subclass": ("subclass-merge",),
    "matrix": ("low-rank-update", "low-rank-scale", "calibration"),
    "low-rank-update": ("bank",),
    "partition-specs": ("sharding",),
    "state-round-trip": ("bank", "conditional"),
    "gradients": ("merge-gradients", "residual-gradients", "checkpoint", "shared-arrays"),
    "input-derivatives": ("input-jet", "residual-gradients"),
    "vmap": ("constructor-vmap-and-scan", "bank", "conditional"),
    "jit": ("constructor-vmap-and-scan", "stacked-layers"),
    "constructor-vmap-and-scan": ("stacked-layers",),
}
# The likely causes of failures.
CAUSES = ("contract", *CONSEQUENCES)


@functools.cache
def presupposed(check: str) -> frozenset[str]:
    """The checks whose failure may be the cause of a failure of `check`, or of such a cause."""
    direct = {cause for cause, checks in CONSEQUENCES.items() if check in checks} | {"contract"}
    return frozenset().union(direct - {check}, *map(presupposed, direct - {check}))
