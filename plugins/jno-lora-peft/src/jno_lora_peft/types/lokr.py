"""LoKr: a Kronecker product."""

import numpy as np

from ._methods import Factors, alpha_for, check_layer, factors, refuse_layer, tucker_kernel
from ._type import ALPHA_PATTERN, R_PATTERN, Adapter, Converted, MisfitError, Module, Type, Written


class LOKR(Type):
    """LoKr if the settings make square first factors, and both whole; else LoRA."""

    tensors = "lokr_(?:w1|w1_a|w1_b|w2|w2_a|w2_b|t2)"
    layers = None
    rank = R_PATTERN
    alpha = ALPHA_PATTERN
    settings = (
        "decompose_both decompose_factor rank_dropout rank_dropout_scale module_dropout "
        "use_effective_conv2d"
    )

    def read(self, m: Module) -> Converted:
        w1, w2 = m.tensors.get("lokr_w1"), m.tensors.get("lokr_w2")
        as_lora = _read_as_lora(m)  # which checks the tensors
        if m.layout.kind != "linear" or w1 is None or w2 is None or m.rank < max(m.layout.matrix):
            return as_lora
        r = len(w1)
        if w1.shape != (r, r) or m.settings.get("decompose_factor") != r:
            return as_lora
        alpha = alpha_for("lokr", r, m.alpha / m.rank, m.alpha)
        return Converted("lokr", r, alpha, {"kron_A": w1, "kron_B": w2})

    def write(self, adapter: Adapter) -> Written:
        """Its rank is so large that PEFT leaves its factors whole."""
        check_layer(adapter.layout, ("linear",))
        A, B, r = adapter.state["kron_A"], adapter.state["kron_B"], adapter.rank
        if (r * len(B), r * B.shape[1]) != adapter.layout.matrix:
            raise MisfitError(f"{r} does not divide the weight's {adapter.layout.matrix}")
        whole, tensors = max(adapter.layout.matrix), {"lokr_w1": A, "lokr_w2": B}
        settings = {"decompose_factor": r, "decompose_both": False}
        return adapter.written(tensors, settings, rank=whole, alpha=adapter.alpha * whole / r)


def _read_as_lora(m: Module) -> Converted:
    """The factors of a Kronecker product are the Kronecker products of the factors."""
    refuse_layer(m.layout, dilated=True)
    tensors, scale = m.tensors, m.alpha / m.rank
    names = {"lokr_w1"} if "lokr_w1" in tensors else {"lokr_w1_a", "lokr_w1_b"}
    names |= {"lokr_w2"} if "lokr_w2" in tensors else {"lokr_w2_a", "lokr_w2_b"}
    names |= {"lokr_t2"} if "lokr_w2" not in tensors and "lokr_t2" in tensors else set()
    # Only the product of the shapes is constrained.
    m.take({name: tensors[name].shape if name in tensors else () for name in sorted(names)})
    (a1, b1), (a2, b2) = (_kronecker_factor(m, name) for name in ("lokr_w1", "lokr_w2"))
    outputs, inputs = m.layout.matrix
    if (len(b1) * len(b2), a1.shape[1] * a2.shape[1]) != (outputs, inputs):
        shapes = (len(b1), a1.shape[1]), (len(b2), a2.shape[1])
        raise MisfitError(f"its Kronecker factors {shapes} do not make {(outputs, inputs)}")
    w2 = tensors.get("lokr_w2")
    if w2 is not None and w2.ndim == 3:
        # PEFT multiplies the kernel of a Conv1d as an array of three axes, so that the axes of the
        # first factor meet other axes than with a Conv2d.
        return m.update(np.kron(b1 @ a1, w2).reshape(outputs, inputs), scale)
    if len(a1) * len(a2) > min(outputs, inputs):
        # The product is smaller than the factors, however large the factors' rank is.
        return m.update(np.kron(b1 @ a1, b2 @ a2), scale)
    return m.low_rank((np.kron(a1, a2), np.kron(b1, b2)), scale)


def _kronecker_factor(m: Module, name: str) -> Factors:
    tensors, rank = m.tensors, m.rank
    if name in tensors:
        return factors(tensors[name])
    a, b = tensors[f"{name}_a"], tensors[f"{name}_b"]
    core = tensors.get("lokr_t2") if name == "lokr_w2" else None
    # With a core, the factors of outputs and inputs both have the rank in front.
    if a.ndim != 2 or b.ndim != 2 or len(b) != rank or a.shape[core is None] != rank:
        raise MisfitError(f"{name}_a and {name}_b of rank {rank} cannot be {a.shape} and {b.shape}")
    if core is None:
        return b, a
    if core.ndim != 4 or core.shape[:2] != (rank, rank):
        raise MisfitError(f"lokr_t2: expected ({rank}, {rank}, and the kernel), got {core.shape}")
    return factors(tucker_kernel(core, a, b))
