"""Types whose update is made only from the layer's own factors."""

import dataclasses

import numpy as np

from ..errors import MisfitError
from ..layouts import Shape
from .type import METHODS, Adapter, Converted, Module, Setting, Type, Written, alpha_for, factors

# LoHa: `(B1 A1) * (B2 A2)`, number by number.
_LAYERS = ("linear", "conv1d", "conv2d")
_NAMES = {"B1": "hada_w1_a", "A1": "hada_w1_b", "B2": "hada_w2_a", "A2": "hada_w2_b"}


class LOHA(Type):
    """LoHa; LoRA if kernels have cores, or the rank is above the layer's."""

    tensors = "hada_(?:w1_a|w1_b|w2_a|w2_b|t1|t2)"
    layers = None
    rank = Setting("r", 8, "rank_pattern")
    alpha = Setting("alpha", 8, "alpha_pattern")

    def read(self, m: Module) -> Converted:
        # All layers of a file with cores become LoRA, so that they can be written as one adapter.
        may_have_cores = m.settings.get("use_effective_conv2d") or "hada_t1" in m.tensors
        if may_have_cores or m.rank > min(m.layout.matrix) or m.layout.odd:
            return _loha_as_lora(m)
        m.layout.check_kind(_LAYERS, groups=True)
        outputs, inputs = m.layout.matrix
        shapes = {"A": (m.rank, inputs), "B": (outputs, m.rank)}
        names = {field: (name, shapes[field[0]]) for field, name in _NAMES.items()}
        return m.as_method("loha", names)

    def write(self, adapter: Adapter) -> Written:
        adapter.layout.check_kind(_LAYERS, groups=True)
        tensors = {name: adapter.state[field] for field, name in _NAMES.items()}
        return adapter.written(tensors, {"use_effective_conv2d": False})


def _loha_as_lora(m: Module) -> Converted:
    """LoRA whose components are all pairs of the two products' components."""
    m.layout.check_update(dilated=True)
    outputs, inputs = m.layout.matrix
    has_cores, scale = "hada_t1" in m.tensors, m.alpha / m.rank
    a, b, core_shapes = (outputs, m.rank), (m.rank, inputs), {}
    if has_cores:
        a, b = (m.rank, outputs), (m.rank, m.layout.inputs // m.layout.groups)
        core = (m.rank, m.rank, *(*m.layout.kernel, 1)[:2])
        core_shapes = {"hada_t1": core, "hada_t2": core}
    shapes = dict(zip(_NAMES.values(), (a, b, a, b), strict=True))
    b1, a1, b2, a2, *cores = m.take(shapes | core_shapes)
    if has_cores:
        return m.update(_tucker_kernel(cores[0], b1, a1) * _tucker_kernel(cores[1], b2, a2), scale)
    if m.rank * m.rank >= min(outputs, inputs):
        return m.update((b1 @ a1) * (b2 @ a2), scale)
    A = np.einsum("ix,jx->ijx", a1, a2).reshape(-1, inputs)
    return m.low_rank((A, np.einsum("oi,oj->oij", b1, b2).reshape(outputs, -1)), scale)


# LoKr: a Kronecker product.
class LOKR(Type):
    """LoKr if the first factors are square and both are full; otherwise LoRA."""

    tensors = "lokr_(?:w1|w1_a|w1_b|w2|w2_a|w2_b|t2)"
    layers = None
    rank = Setting("r", 8, "rank_pattern")
    alpha = Setting("alpha", 8, "alpha_pattern")

    def read(self, m: Module) -> Converted:
        w1, w2 = m.tensors.get("lokr_w1"), m.tensors.get("lokr_w2")
        as_lora = _lokr_as_lora(m)  # this also checks the tensors
        if m.layout.kind != "linear" or w1 is None or w2 is None or m.rank < max(m.layout.matrix):
            return as_lora
        r = len(w1)
        if w1.shape != (r, r) or m.settings.get("decompose_factor") != r:
            return as_lora
        alpha = alpha_for("lokr", r, m.alpha / m.rank, m.alpha)
        return Converted("lokr", r, alpha, {"kron_A": w1, "kron_B": w2})

    def write(self, adapter: Adapter) -> Written:
        """Its rank is so large that PEFT leaves its factors whole."""
        adapter.layout.check_kind(("linear",))
        A, B, r = adapter.state["kron_A"], adapter.state["kron_B"], adapter.rank
        if (r * len(B), r * B.shape[1]) != adapter.layout.matrix:
            raise MisfitError(f"{r} does not divide the weight's {adapter.layout.matrix}")
        whole, tensors = max(adapter.layout.matrix), {"lokr_w1": A, "lokr_w2": B}
        settings = {"decompose_factor": r, "decompose_both": False}
        return adapter.written(tensors, settings, rank=whole, alpha=adapter.alpha * whole / r)


def _lokr_as_lora(m: Module) -> Converted:
    """The factors of a Kronecker product are the Kronecker products of the factors."""
    m.layout.check_update(dilated=True)
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
        # PEFT treats the kernel of a Conv1d as an array with three axes, so that the axes of the
        # first factor align differently than with a Conv2d.
        return m.update(np.kron(b1 @ a1, w2).reshape(outputs, inputs), scale)
    if len(a1) * len(a2) > min(outputs, inputs):
        # The product is smaller than the factors, whatever their rank.
        return m.update(np.kron(b1 @ a1, b2 @ a2), scale)
    return m.low_rank((np.kron(a1, a2), np.kron(b1, b2)), scale)


def _kronecker_factor(m: Module, name: str) -> tuple[np.ndarray, np.ndarray]:
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
    return factors(_tucker_kernel(core, a, b))


# HiRA: the weight times `1 + B A`, number by number. PEFT has no scale.
class HIRA(Type):
    """HiRA."""

    tensors = "hira_(?:embedding_)?[AB]"
    layers = ("linear", "conv1d", "conv2d", "conv3d", "embedding")
    rank = Setting("r", 32)

    def read(self, m: Module) -> Converted:
        table = m.layout.pair("hira", m.rank)
        A, B = (tensor.reshape(len(tensor), -1) for tensor in m.take(dict(table.values())))
        if m.rank > min(m.layout.matrix):
            A, B = factors((B @ A).astype(A.dtype))
        return Converted("hira", len(A), float(len(A)), {"lora_A": A, "lora_B": B})

    def write(self, adapter: Adapter) -> Written:
        """Its scale goes into `B`."""
        A, B = adapter.state["lora_A"], adapter.state["lora_B"]
        scale = METHODS["hira"].scale_for(adapter.rank, adapter.alpha)
        arrays = {"lora_A": A, "lora_B": (B * scale).astype(B.dtype)}
        table = adapter.layout.pair("hira", adapter.rank)
        tensors = {name: arrays[field].reshape(shape) for field, (name, shape) in table.items()}
        return adapter.written(tensors, {})


# GraLoRA: a grid of low-rank blocks; LoRA if it also has a LoRA of all inputs.
class GRALORA(Type):
    """GraLoRA; LoRA if it is a hybrid."""

    tensors = r"gralora_[AB](?:_general\.weight)?"
    rank = Setting("r", 32)
    alpha = Setting("alpha", 64)
    bias = "gralora_only"

    def read(self, m: Module) -> Converted:
        outputs, inputs = m.layout.matrix
        k, hybrid = m.settings.get("gralora_k", 2), m.settings.get("hybrid_r", 0)
        shapes = {"A": (k, inputs // k, m.rank), "B": (k, m.rank, outputs // k)}
        if not hybrid:
            return m.as_method("gralora", {n: (f"gralora_{n}", x) for n, x in shapes.items()})
        shapes |= {"A_general.weight": (hybrid, inputs), "B_general.weight": (outputs, hybrid)}
        A, B, general_A, general_B = m.take({f"gralora_{n}": x for n, x in shapes.items()})
        A = A.reshape(k, inputs // k, k, m.rank // k)
        B = B.reshape(k, k, m.rank // k, outputs // k)
        U = np.einsum("nqjs,jnsp->jpnq", A, B).reshape(outputs, inputs) + general_B @ general_A
        return m.update(U, m.alpha / (m.rank + hybrid))

    def write(self, adapter: Adapter) -> Written:
        k = len(adapter.state["A"])
        if adapter.layout.outputs % k or adapter.layout.inputs % k:
            raise MisfitError(f"PEFT's {k} blocks must divide the layer's inputs and outputs")
        tensors = {f"gralora_{letter}": adapter.state[letter] for letter in "AB"}
        return adapter.written(tensors, {"gralora_k": k, "hybrid_r": 0})


# DeLoRA: an update of normalised components with a trained strength.
class DELORA(Type):
    """DeLoRA."""

    tensors = "delora_(?:A|B|lambda|w_norm)"
    rank = Setting("r", 8, "rank_pattern")
    bias = "delora_only"

    def read(self, m: Module) -> Converted:
        (outputs, inputs), r = m.layout.matrix, m.rank
        names = {
            "lora_A": ("delora_A", (r, inputs)),
            "lora_B": ("delora_B", (outputs, r)),
            "strength": ("delora_lambda", (1,)),
            "norms": ("delora_w_norm", (inputs,)),
        }
        adapter = m.as_method("delora", names)
        return adapter.with_arrays(strength=adapter.state["strength"].reshape(()))

    def write(self, adapter: Adapter) -> Written:
        state = adapter.state
        tensors = {"delora_A": state["lora_A"], "delora_B": state["lora_B"]}
        tensors |= {"delora_lambda": state["strength"].reshape(1), "delora_w_norm": state["norms"]}
        return adapter.written(tensors, {})


# DEFT: a projection and its replacement. PEFT's orthonormal columns may have other signs.
class DEFT(Type):
    """DEFT."""

    tensors = "deft_[PR]"
    rank = Setting("r", 8)
    bias = "deft_only"

    def read(self, m: Module) -> Converted:
        r = min(m.rank, m.layout.outputs)
        para, method = bool(m.settings.get("para")), m.settings.get("decomposition_method", "relu")
        if method not in ("relu", "qr"):
            raise MisfitError(f"decomposition_method is {method!r}, and PEFT has 'relu' and 'qr'")
        names = {"P": ("deft_P", (m.layout.outputs, r))}
        if not para:
            names["R"] = ("deft_R", (r, m.layout.inputs))
        adapter = dataclasses.replace(m, rank=r).as_method("deft", names)
        if not para:
            P, R = adapter.state["P"], adapter.state["R"]
            scale = m.settings["alpha"] / r if m.settings.get("alpha") else 1.0
            adapter = adapter.with_arrays(R=_signs(P, method) * R * np.float32(scale))
        if method == "qr":
            adapter = adapter.with_arrays(orthogonal=np.ones((), np.float32))
        return adapter

    def write(self, adapter: Adapter) -> Written:
        state, method = adapter.state, "qr" if "orthogonal" in adapter.state else "relu"
        tensors = {"deft_P": state["P"]}
        if "R" in state:
            tensors["deft_R"] = _signs(state["P"], method) * state["R"]
        settings = {"decomposition_method": method, "para": "R" not in state, "alpha": None}
        return adapter.written(tensors, settings)


def _signs(P: np.ndarray, method: str) -> np.ndarray:
    """The sign of each column of LAPACK's `Q` relative to Gram-Schmidt, which keeps directions."""
    if method != "qr":
        return np.ones((1, 1), P.dtype)
    return np.sign(np.diag(np.linalg.qr(P)[1]))[:, None].astype(P.dtype)


# MiSS: one matrix for all inputs that lie `r` apart, in three shapes.
class MISS(Type):
    """MiSS."""

    tensors = "miss_block"
    rank = Setting("r", 64)
    bias = "miss_only"

    def read(self, m: Module) -> Converted:
        start = m.settings.get("init_weights", True)
        if start == "bat":
            (D,) = m.take({"miss_block": (m.layout.outputs // m.rank, m.rank, m.rank)})
            if m.layout.outputs % m.rank or m.layout.inputs % m.rank:
                raise MisfitError(f"its blocks of {m.rank} do not divide the layer's weight")
        else:
            columns = m.settings.get("mini_r", 1) if start == "mini" else m.layout.outputs
            (D,) = m.take({"miss_block": (m.rank, columns)})
            if m.rank > m.layout.inputs or m.layout.outputs % columns:
                raise MisfitError(f"its matrix ({m.rank}, {columns}) does not fit the weight")
        return Converted("miss", m.rank, 1.0, {"D": D})

    def write(self, adapter: Adapter) -> Written:
        D = adapter.state["D"]
        is_mini = D.ndim == 2 and D.shape[1] != adapter.layout.outputs
        start = "bat" if D.ndim == 3 else "mini" if is_mini else True
        settings = {"init_weights": start, "mini_r": D.shape[1] if is_mini else 1}
        return adapter.written({"miss_block": D}, settings)


# C3A: circular convolutions of blocks.
class C3A(Type):
    """C3A."""

    tensors = "c3a_kernel"
    rank = Setting("block_size", 256, "block_size_pattern", by_name=True)
    bias = "c3a_only"

    def read(self, m: Module) -> Converted:
        *blocks, _ = m.shape_of("c3a_kernel", 3)
        return m.as_method("c3a", {"kernel": ("c3a_kernel", (*blocks, m.rank))})

    def write(self, adapter: Adapter) -> Written:
        return adapter.written({"c3a_kernel": adapter.state["kernel"]}, {})


# GLoRA: `W + W A + B` and `b + b D + E + W C`; each of `A` to `E` has one of four forms.
class GLORA(Type):
    """LoRA of the layer's rank; also replaces the bias."""

    tensors = r"glora_[A-E]\.(?:Xd|Xu|X|zeros)"
    layers = None
    rank = Setting("r", 8)

    def read(self, m: Module) -> Converted:
        outputs, inputs = m.layout.matrix
        shapes = {"A": (outputs, inputs), "B": (outputs, inputs), "C": (inputs, 1)}
        shapes |= {"D": (outputs,), "E": (outputs,)}
        A, B, C, D, E = (_support(m, letter, shape) for letter, shape in shapes.items())
        bias = getattr(m.layer, "bias", None)
        b = 0.0 if bias is None else np.asarray(bias[m.index], np.float64).reshape(-1)
        shift = b * D + E + (m.W @ C)[:, 0]
        adapter = m.update((m.W * A + B).astype(np.float32))
        if shift.any():
            adapter = dataclasses.replace(adapter, bias_shift=shift.astype(np.float32))
        return adapter


def _support(m: Module, letter: str, shape: Shape) -> np.ndarray:
    """One of `A` to `E`: a product of two factors, a vector, a number, or nothing."""
    prefix = f"glora_{letter}."
    x = {name.removeprefix(prefix): t for name, t in m.tensors.items() if name.startswith(prefix)}
    try:
        support = x["Xd"] @ x["Xu"] if x.keys() == {"Xd", "Xu"} else x.get("X", 0.0)
        return np.broadcast_to(np.asarray(support, np.float64), shape)
    except ValueError as err:
        raise MisfitError(f"glora_{letter}: it does not make an array {shape}: {err}") from err


def _tucker_kernel(core: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A kernel from its core and the factors of its outputs and inputs (a Tucker decomposition)."""
    return np.einsum("ijkl,jr,ip->prkl", core, b, a)
