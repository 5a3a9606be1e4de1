"""Updates of a structure that a method of the zoo has too, where it is not LoRA's."""

import dataclasses

import numpy as np

from ._layouts import METHODS
from ._low_rank import adalora as pruned, loha as as_lora, lokr as kronecker
from ._module import Converted, Module
from ._same import Adapter, File, Same, Tensor, check_kind
from ._updates import MisfitError, alpha_for, factors

CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")

_LOHA = Same(
    "loha",
    {
        "B1": Tensor("hada_w1_a", "out r"),
        "A1": Tensor("hada_w1_b", "r in"),
        "B2": Tensor("hada_w2_a", "out r"),
        "A2": Tensor("hada_w2_b", "r in"),
    },
    ("linear", "conv1d", "conv2d"),
    groups=True,
    settings={"use_effective_conv2d": False},
)
to_loha = _LOHA.write


def loha(m: Module) -> Converted:
    """LoHa, but LoRA with the same update if kernels have cores, and for ranks too large."""
    has_cores = m.values.get("use_effective_conv2d") or "hada_t1" in m.parts
    fits = m.rank <= min(m.layout.matrix)
    return as_lora(m) if has_cores or not fits or m.layout.odd else _LOHA.read(m)


def lokr(m: Module) -> Converted:
    """LoKr if the settings make square first factors, and both whole; else LoRA."""
    w1, w2 = m.parts.get("lokr_w1"), m.parts.get("lokr_w2")
    found = kronecker(m)  # which checks the parts
    if m.layout.kind != "linear" or w1 is None or w2 is None or m.rank < max(m.layout.matrix):
        return found
    r = len(w1)
    if w1.shape != (r, r) or m.values.get("decompose_factor") != r:
        return found
    alpha = alpha_for("lokr", r, m.alpha / m.rank, m.alpha)
    return Converted("lokr", r, alpha, {"kron_A": w1, "kron_B": w2})


def to_lokr(adapter: Adapter) -> File:
    """An adapter of the variant `"lokr"` for PEFT, with a rank that leaves its factors whole."""
    check_kind(adapter.layout)
    A, B, r = adapter.state["kron_A"], adapter.state["kron_B"], adapter.rank
    if (r * len(B), r * B.shape[1]) != adapter.layout.matrix:
        raise MisfitError(
            f"PEFT's factors must divide the sizes {adapter.layout.matrix} of the weight, not {r}"
        )
    settings = {"decompose_factor": r, "decompose_both": False}
    whole = max(adapter.layout.matrix)
    return File(whole, {"lokr_w1": A, "lokr_w2": B}, settings, adapter.alpha * whole / r)


_ADALORA = Same(
    "adalora",
    {
        "lora_A": Tensor("lora_A", "r in"),
        "lora_B": Tensor("lora_B", "out r"),
        "lora_E": Tensor("lora_E", "r 1 -> r"),
    },
)


def adalora(m: Module) -> Converted:
    """AdaLoRA, with the components that are left; LoRA if none is, or more than fit the layer."""
    A = m.parts.get("lora_A")
    left = len(A) if A is not None and A.ndim == 2 else 0
    if not 0 < left <= min(m.layout.matrix):
        return pruned(m)
    scale = (m.alpha if m.alpha > 0 else m.rank) / (m.rank + 1e-5)
    found = _ADALORA.read(dataclasses.replace(m, rank=left))
    return dataclasses.replace(found, alpha=scale * left)


def to_adalora(adapter: Adapter) -> File:
    """An adapter of the variant `"adalora"` for PEFT, which divides by the rank and 1e-5."""
    file, r = _ADALORA.write(adapter), adapter.rank
    schedule = {"target_r": r, "total_step": 1, "tinit": 0, "tfinal": 0}
    return file._replace(settings=schedule, alpha=adapter.alpha * (r + 1e-5) / r)


def hira(m: Module) -> Converted:
    """The weight times `1 + B A`, number by number. PEFT has no scale."""
    check_kind(m.layout, ("linear", *CONVOLUTIONS, "embedding"))
    table = m.layout.pair("hira", m.rank)
    m.check(dict(table.values()))
    A, B = (m.parts[name].reshape(shape[0], -1) for name, shape in table.values())
    if m.rank > min(m.layout.matrix):
        A, B = factors((B @ A).astype(A.dtype))
    return Converted("hira", len(A), float(len(A)), {"lora_A": A, "lora_B": B})


def to_hira(adapter: Adapter) -> File:
    """An adapter of the variant `"hira"` for PEFT, its scale in `B`."""
    check_kind(adapter.layout, ("linear", *CONVOLUTIONS, "embedding"))
    scale = METHODS["hira"].scale_for(adapter.rank, adapter.alpha)
    arrays = {"lora_A": adapter.state["lora_A"], "lora_B": adapter.state["lora_B"] * scale}
    table = adapter.layout.pair("hira", adapter.rank)
    tensors = {
        name: arrays[field].astype(adapter.state[field].dtype).reshape(shape)
        for field, (name, shape) in table.items()
    }
    return File(adapter.rank, tensors, {})


delora = Same(
    "delora",
    {
        "lora_A": Tensor("delora_A", "r in"),
        "lora_B": Tensor("delora_B", "out r"),
        "strength": Tensor("delora_lambda", "1 ->"),
        "norms": Tensor("delora_w_norm", "in"),
    },
    alpha=lambda m: 1.0,
)


c3a = Same("c3a", {"kernel": Tensor("c3a_kernel", "p q r")}, alpha=lambda m: 1.0)


def miss(m: Module) -> Converted:
    """One matrix for all inputs that lie `r` apart, in three shapes."""
    start = m.values.get("init_weights", True)
    if start == "bat":
        blocks = m.layout.outputs // m.rank
        m.check({"miss_block": (blocks, m.rank, m.rank)})
        if m.layout.outputs % m.rank or m.layout.inputs % m.rank:
            raise MisfitError(f"its blocks of {m.rank} do not divide the layer's weight")
    else:
        columns = m.values.get("mini_r", 1) if start == "mini" else m.layout.outputs
        m.check({"miss_block": (m.rank, columns)})
        if m.rank > m.layout.inputs or m.layout.outputs % columns:
            raise MisfitError(f"its matrix ({m.rank}, {columns}) does not fit the layer's weight")
    check_kind(m.layout)
    return Converted("miss", m.rank, 1.0, {"D": m.parts["miss_block"]})


def to_miss(adapter: Adapter) -> File:
    """An adapter of the variant `"miss"` for PEFT."""
    check_kind(adapter.layout)
    D = adapter.state["D"]
    is_mini = D.ndim == 2 and D.shape[1] != adapter.layout.outputs
    start = "bat" if D.ndim == 3 else "mini" if is_mini else True
    settings = {"init_weights": start, "mini_r": D.shape[1] if is_mini else 1}
    return File(adapter.rank, {"miss_block": D}, settings)


_GRALORA = Same(
    "gralora",
    {"A": Tensor("gralora_A", "k q r"), "B": Tensor("gralora_B", "k r p")},
)


def gralora(m: Module) -> Converted:
    """A grid of blocks of low rank; LoRA if there is one of all inputs beside it."""
    outputs, inputs = m.layout.matrix
    k, hybrid = m.values.get("gralora_k", 2), m.values.get("hybrid_r", 0)
    if not isinstance(k, int) or k < 1 or outputs % k or inputs % k or m.rank % k:
        raise MisfitError(f"gralora_k is {k!r}, and must divide {outputs}, {inputs} and {m.rank}")
    shapes = {"gralora_A": (k, inputs // k, m.rank), "gralora_B": (k, m.rank, outputs // k)}
    if not hybrid:
        m.check(shapes)
        return _GRALORA.read(m)
    general = [f"gralora_{letter}_general.weight" for letter in "AB"]
    m.check(shapes | dict(zip(general, ((hybrid, inputs), (outputs, hybrid)), strict=True)))
    A = m.parts["gralora_A"].reshape(k, inputs // k, k, m.rank // k)
    B = m.parts["gralora_B"].reshape(k, k, m.rank // k, outputs // k)
    U = np.einsum("nqjs,jnsp->jpnq", A, B).reshape(outputs, inputs)
    U = U + m.parts[general[1]] @ m.parts[general[0]]
    return m.low_rank(factors(U), m.alpha / (m.rank + hybrid))


def to_gralora(adapter: Adapter) -> File:
    """An adapter of the variant `"gralora"` for PEFT."""
    k = len(adapter.state["A"])
    if adapter.layout.outputs % k or adapter.layout.inputs % k:
        raise MisfitError(f"PEFT's grid of {k} blocks must divide the layer's inputs and outputs")
    settings = {"gralora_k": k, "hybrid_r": 0}
    return _GRALORA.write(adapter)._replace(settings=settings)
