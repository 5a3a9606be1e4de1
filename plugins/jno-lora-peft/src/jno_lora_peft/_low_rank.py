"""The types whose update is a product of two factors, and how each makes the factors."""

import dataclasses

import numpy as np

from ._layouts import METHODS
from ._module import Converted, Module
from ._sharing import projections
from ._starts import residual_of
from ._updates import Factors, MisfitError, factors, refuse_layer


def lora(m: Module) -> Converted:
    """LoRA, rsLoRA and DoRA."""
    variant = "rslora" if m.values.get("use_rslora") else "lora"
    scale = METHODS[variant].scale_for(m.rank, m.alpha)
    variant = "dora" if m.values.get("use_dora") else variant
    if m.rank % m.layout.groups:
        raise MisfitError(f"the rank {m.rank} is not a multiple of the {m.layout.groups} groups")
    table = m.layout.pair("lora", m.rank)
    if variant == "dora":
        table["magnitude"] = ("lora_magnitude_vector", m.layout.row)
    bias = {"lora_B.bias": (m.layout.outputs,)} if m.values.get("lora_bias") else {}
    m.check(dict(table.values()) | bias, ignored="lora_velora_embed")
    refuse_layer(m.layout, dora=variant == "dora")
    arrays = {field: m.parts[name] for field, (name, _) in table.items()}
    shift = {"shift": scale * m.parts["lora_B.bias"]} if bias else {}
    matrices = m.layout.to_matrices(arrays.pop("lora_A"), arrays.pop("lora_B"))
    if matrices is None:
        raise MisfitError(
            f"its update sees the inputs of all {m.layout.groups} groups, where the layer's kernel "
            "sees those of one, so that no kernel holds it"
        )
    if (start := residual_of(m, scale)) is not None:
        found = m.low_rank(matrices, scale, **shift)
        name = str(m.values["init_lora_weights"]).lower().partition("_")[0]
        return dataclasses.replace(found, variant=name, state={**found.state, **start})
    found = m.low_rank(matrices, scale, variant, **shift)
    vectors = {field: array.reshape(-1) for field, array in arrays.items()}
    return dataclasses.replace(found, state={**found.state, **vectors})


def adalora(m: Module) -> Converted:
    """`s B diag(E) A`. The components that AdaLoRA has pruned are not in the file."""
    A = m.parts.get("lora_A")
    left = m.rank if A is None or A.ndim == 0 else len(A)
    outputs, inputs = m.layout.matrix
    m.check({"lora_A": (left, inputs), "lora_B": (outputs, left), "lora_E": (left, 1)})
    scale = (m.alpha if m.alpha > 0 else m.rank) / (m.rank + 1e-5)
    return m.low_rank((m.parts["lora_E"] * m.parts["lora_A"], m.parts["lora_B"]), scale)


def pvera(m: Module) -> Converted:
    """As VeRA: the second half of `d` and `A` makes the variance, which training alone draws by."""
    m.check({"pvera_lambda_b": (m.layout.outputs,), "pvera_lambda_d": (2 * m.rank,)})
    A, B = projections(m, "pvera", 2 * m.rank)
    d, b = m.parts["pvera_lambda_d"][: m.rank], m.parts["pvera_lambda_b"]
    return m.low_rank((d[:, None] * A[: m.rank], b[:, None] * B))


def unilora(m: Module) -> Converted:
    """Factors whose entries are taken from one vector for all layers."""
    theta = m.shared.get("base_model.unilora_theta_d")
    outputs, inputs = m.layout.matrix
    shapes = {"A": (m.rank, inputs), "B": (outputs, m.rank)}
    if theta is None:
        raise MisfitError("the vector that all layers share is not in the file")
    m.check({f"unilora_{kind}_{n}": s for kind in ("indices", "scales") for n, s in shapes.items()})
    A, B = (
        theta[m.parts[f"unilora_indices_{n}"].astype(int)] * m.parts[f"unilora_scales_{n}"]
        for n in shapes
    )
    return m.low_rank((A, B))


def loha(m: Module) -> Converted:
    """`(B1 A1) * (B2 A2)`, number by number: a sum over all pairs of their components."""
    refuse_layer(m.layout, dilated=True)
    outputs, inputs = m.layout.matrix
    has_cores, scale = "hada_t1" in m.parts, m.alpha / m.rank
    a, b, shapes = (outputs, m.rank), (m.rank, inputs), {}
    if has_cores:
        a, b = (m.rank, outputs), (m.rank, m.layout.inputs // m.layout.groups)
        core = (m.rank, m.rank, *(*m.layout.kernel, 1)[:2])
        shapes = dict.fromkeys(("hada_t1", "hada_t2"), core)
    shapes |= {"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": a, "hada_w2_b": b}
    m.check(shapes)
    b1, a1, b2, a2 = (m.parts[f"hada_{name}"] for name in ("w1_a", "w1_b", "w2_a", "w2_b"))
    if has_cores:
        first, second = m.parts["hada_t1"], m.parts["hada_t2"]
        return m.low_rank(factors(_kernel(first, b1, a1) * _kernel(second, b2, a2)), scale)
    if m.rank * m.rank >= min(outputs, inputs):
        return m.low_rank(factors((b1 @ a1) * (b2 @ a2)), scale)
    A = np.einsum("ix,jx->ijx", a1, a2).reshape(-1, inputs)
    return m.low_rank((A, np.einsum("oi,oj->oij", b1, b2).reshape(outputs, -1)), scale)


def lokr(m: Module) -> Converted:
    """A Kronecker product, whose factors are the Kronecker products of the factors'."""
    refuse_layer(m.layout, dilated=True)
    parts, scale = m.parts, m.alpha / m.rank
    names = {"lokr_w1"} if "lokr_w1" in parts else {"lokr_w1_a", "lokr_w1_b"}
    names |= {"lokr_w2"} if "lokr_w2" in parts else {"lokr_w2_a", "lokr_w2_b"}
    names |= {"lokr_t2"} if "lokr_w2" not in parts and "lokr_t2" in parts else set()
    # Only the product of the shapes is constrained.
    m.check({name: parts[name].shape if name in parts else () for name in sorted(names)})
    (a1, b1), (a2, b2) = (_kronecker_factor(m, name) for name in ("lokr_w1", "lokr_w2"))
    outputs, inputs = m.layout.matrix
    if (len(b1) * len(b2), a1.shape[1] * a2.shape[1]) != (outputs, inputs):
        raise MisfitError(
            f"its Kronecker factors {(len(b1), a1.shape[1])} and {(len(b2), a2.shape[1])} do not "
            f"make the layer's {(outputs, inputs)}"
        )
    w2 = parts.get("lokr_w2")
    if w2 is not None and w2.ndim == 3:
        # The kernel of a Conv1d: PEFT multiplies it as an array of three axes, in which the axes of
        # the first factor meet other axes than with a Conv2d.
        return m.low_rank(factors(np.kron(b1 @ a1, w2).reshape(outputs, inputs)), scale)
    if len(a1) * len(a2) > min(outputs, inputs):
        # Their product is smaller, however large the factors' rank is.
        return m.low_rank(factors(np.kron(b1 @ a1, b2 @ a2)), scale)
    return m.low_rank((np.kron(a1, a2), np.kron(b1, b2)), scale)


def _kernel(core: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A kernel from its core and the factors of its outputs and inputs (a Tucker decomposition)."""
    return np.einsum("ijkl,jr,ip->prkl", core, b, a)


def _kronecker_factor(m: Module, name: str) -> Factors:
    """One Kronecker factor, itself as two factors."""
    parts, rank = m.parts, m.rank
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
    return factors(_kernel(core, a, b))
