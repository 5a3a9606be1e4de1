"""Updates as two factors, also those that PEFT makes of other parts."""

import math
from collections.abc import Mapping

import numpy as np

from ._layouts import METHODS, Layout, Shape

Parts = Mapping[str, np.ndarray]
Factors = tuple[np.ndarray, np.ndarray]


class MisfitError(ValueError):
    """The adapter of one module cannot be converted. `args` has a line for each reason."""


def adalora(parts: Parts, rank: int, layout: Layout) -> Factors:
    """`B diag(E) A`. The components that AdaLoRA has pruned are not in the file."""
    A = parts.get("lora_A")
    left = rank if A is None or A.ndim == 0 else len(A)
    outputs, inputs = layout.matrix
    shapes = {"lora_A": (left, inputs), "lora_B": (outputs, left), "lora_E": (left, 1)}
    check(parts, shapes)
    return parts["lora_E"] * A, parts["lora_B"]


def loha(parts: Parts, rank: int, layout: Layout) -> Factors:
    """`(B1 A1) * (B2 A2)`, number by number: a sum over all pairs of their components."""
    outputs, inputs = layout.matrix
    has_cores = "hada_t1" in parts
    a, b, shapes = (outputs, rank), (rank, inputs), {}
    if has_cores:
        a, b = (rank, outputs), (rank, layout.inputs // layout.groups)
        shapes = dict.fromkeys(("hada_t1", "hada_t2"), (rank, rank, *(*layout.kernel, 1)[:2]))
    shapes |= {"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": a, "hada_w2_b": b}
    check(parts, shapes)
    b1, a1, b2, a2 = (parts[f"hada_{name}"] for name in ("w1_a", "w1_b", "w2_a", "w2_b"))
    if has_cores:
        first, second = kernel_of(parts["hada_t1"], b1, a1), kernel_of(parts["hada_t2"], b2, a2)
        return factors(first * second)
    if rank * rank >= min(outputs, inputs):
        return factors((b1 @ a1) * (b2 @ a2))
    A = np.einsum("ix,jx->ijx", a1, a2).reshape(-1, inputs)
    return A, np.einsum("oi,oj->oij", b1, b2).reshape(outputs, -1)


def lokr(parts: Parts, rank: int, layout: Layout) -> Factors:
    """A Kronecker product, whose factors are the Kronecker products of the factors'."""
    names = {"lokr_w1"} if "lokr_w1" in parts else {"lokr_w1_a", "lokr_w1_b"}
    names |= {"lokr_w2"} if "lokr_w2" in parts else {"lokr_w2_a", "lokr_w2_b"}
    names |= {"lokr_t2"} if "lokr_w2" not in parts and "lokr_t2" in parts else set()
    # Only the product of the shapes is constrained.
    check(parts, {name: parts[name].shape if name in parts else () for name in sorted(names)})
    first, second = (_kronecker_factor(parts, name, rank) for name in ("lokr_w1", "lokr_w2"))
    outputs, inputs = layout.matrix
    (a1, b1), (a2, b2) = first, second
    if (len(b1) * len(b2), a1.shape[1] * a2.shape[1]) != (outputs, inputs):
        raise MisfitError(
            f"its Kronecker factors {(len(b1), a1.shape[1])} and {(len(b2), a2.shape[1])} do not "
            f"make the layer's {(outputs, inputs)}"
        )
    w2 = parts.get("lokr_w2")
    if w2 is not None and w2.ndim == 3:
        # The kernel of a Conv1d: PEFT multiplies it as an array of three axes, in which the axes of
        # the first factor meet other axes than with a Conv2d.
        return factors(np.kron(b1 @ a1, w2).reshape(outputs, inputs))
    if len(a1) * len(a2) > min(outputs, inputs):
        # Their product is smaller, however large the factors' rank is.
        return factors(np.kron(b1 @ a1, b2 @ a2))
    return np.kron(a1, a2), np.kron(b1, b2)


UPDATES = {"ADALORA": adalora, "LOHA": loha, "LOKR": lokr}


def factors(kernel: np.ndarray) -> Factors:
    """Factors `A` and `B` of a matrix, or of a kernel as one, that may have any rank."""
    matrix = kernel.reshape(len(kernel), -1)
    outputs, inputs = matrix.shape
    eye = np.eye(min(outputs, inputs), dtype=matrix.dtype)
    return (matrix, eye) if outputs <= inputs else (eye, matrix)


def refuse_layer(layout: Layout, *, dora: bool) -> None:
    """**Raises:** `MisfitError` if PEFT's update of the layer is not an update of its weight."""
    if layout.odd:
        raise MisfitError(
            f"the layer has {layout.odd}, which PEFT leaves out when it runs the update beside it, "
            "so that no kernel does the same"
        )
    if dora and layout.groups > 1:
        raise MisfitError("PEFT's DoRA takes no norm of the rows of a kernel with groups")


def alpha_for(variant: str, rank: int, scale: float, given: float) -> float:
    """The alpha that makes this scale of an update: the given one, but for rounding, if it does."""
    alpha = scale / METHODS[variant].scale_for(rank, 1.0)
    return float(given) if math.isclose(alpha, given) else alpha


def widened(array: np.ndarray) -> np.ndarray:
    """The array in float32 at least."""
    return array.astype(np.promote_types(array.dtype, np.float32))


def kernel_of(core: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A kernel from its core and the factors of its outputs and inputs (a Tucker decomposition)."""
    return np.einsum("ijkl,jr,ip->prkl", core, b, a)


def check(parts: Parts, shapes: Mapping[str, Shape], ignored: str = "") -> None:
    """**Raises:** `MisfitError` unless these are all the parts, and have these shapes."""
    lines = [f"{name}: missing" for name in shapes if name not in parts]
    lines += [
        f"{name}: not part of the adapter that adapter_config.json describes for this layer"
        for name in parts
        if name not in shapes and name != ignored
    ]
    lines += [
        f"{name}: expected shape {shape}, got {parts[name].shape}"
        for name, shape in shapes.items()
        if name in parts and parts[name].shape != shape
    ]
    if lines:
        raise MisfitError(*lines)


def _kronecker_factor(parts: Parts, name: str, rank: int) -> Factors:
    """One Kronecker factor, itself as two factors."""
    if name in parts:
        if parts[name].ndim < 2 or parts[name].size == 0:
            raise MisfitError(f"{name}: expected a matrix or a kernel, got {parts[name].shape}")
        return factors(parts[name])
    a, b = parts[f"{name}_a"], parts[f"{name}_b"]
    core = parts.get("lokr_t2") if name == "lokr_w2" else None
    # With a core, the factors of outputs and inputs both have the rank in front.
    if a.ndim != 2 or b.ndim != 2 or len(b) != rank or a.shape[core is None] != rank:
        raise MisfitError(f"{name}_a and {name}_b of rank {rank} cannot be {a.shape} and {b.shape}")
    if core is None:
        return b, a
    if core.ndim != 4 or core.shape[:2] != (rank, rank) or 0 in (core.size, a.size, b.size):
        raise MisfitError(f"lokr_t2: expected ({rank}, {rank}, and the kernel), got {core.shape}")
    return factors(kernel_of(core, a, b))
