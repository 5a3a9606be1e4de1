"""Types with arrays that all layers share.

Each module uses the first rows and columns of a shared matrix.
"""

import operator
from collections.abc import Mapping

import numpy as np

from ..errors import MisfitError
from ..layouts import Shape
from ..names import PREFIX
from .positions import normal
from .type import Adapter, Converted, Module, Modules, Setting, Tensors, Type, Written


# VeRA: `diag(b) B diag(d) A`, with matrices that all layers share.
class VERA(Type):
    """VeRA with the shared matrices from the file (`vera-shared`)."""

    tensors = "vera_lambda_[bd]"
    methods = ("vera-shared",)
    rank = Setting("r", 256)
    shared = r"base_model\.vera_[AB]"
    bias = "vera_only"

    def read(self, m: Module) -> Converted:
        b, d = m.take({"vera_lambda_b": (m.layout.outputs,), "vera_lambda_d": (m.rank,)})
        outputs, inputs = m.layout.matrix
        A, B = _shared_arrays(m, {"vera_A": (m.rank, inputs), "vera_B": (outputs, m.rank)})
        shared = {"vera-A": A, "vera-B": B}
        return Converted("vera-shared", m.rank, 1.0, {"b": b, "d": d}, shared=shared)

    def write(self, adapter: Adapter) -> Written:
        (outputs, inputs), r = adapter.layout.matrix, adapter.rank
        b = np.asarray(adapter.alpha, adapter.state["b"].dtype) * adapter.state["b"]
        shared = {
            "base_model.vera_A": adapter.shared["A"][:r, :inputs],
            "base_model.vera_B": adapter.shared["B"][:outputs, :r],
        }
        tensors = {"vera_lambda_b": b, "vera_lambda_d": adapter.state["d"]}
        return Written(adapter, tensors, {"save_projection": True}, shared)


# PVeRA, like VeRA: the second half of `d` and `A` is the variance, used only in training.
class PVERA(Type):
    """LoRA, `A = diag(d) A`, `B = diag(b) B`."""

    tensors = "pvera_lambda_[bd]"
    layers = None
    rank = Setting("r", 256)
    shared = r"base_model\.pvera_[AB]"
    only = (("sample_at_inference", False, "its outputs are drawn at random"),)

    def read(self, m: Module) -> Converted:
        (outputs, inputs), r = m.layout.matrix, m.rank
        b, d = m.take({"pvera_lambda_b": (outputs,), "pvera_lambda_d": (2 * r,)})
        A, B = _shared_arrays(m, {"pvera_A": (2 * r, inputs), "pvera_B": (outputs, r)})
        return m.low_rank((d[:r, None] * A[:r, :inputs], b[:, None] * B[:outputs]))


# RandLoRA: random bases that all layers share, scaled by two trained matrices.
class RANDLORA(Type):
    """RandLoRA, with the bases from the file."""

    tensors = "randlora_(?:lambda|gamma|A|B)"
    rank = Setting("r", 32)
    alpha = Setting("randlora_alpha", 640)
    shared = r"base_model\.randlora_[AB]"
    bias = "randlora_only"

    def read(self, m: Module) -> Converted:
        r, (smaller, larger) = m.rank, sorted(m.layout.matrix)
        n = -(-smaller // r)
        shapes = {"randlora_lambda": (r, n), "randlora_gamma": (n, smaller)}
        lambdas, gammas = m.take(shapes, ignored=("randlora_A", "randlora_B"))
        A, B = _shared_arrays(m, {"randlora_A": (r, 1, smaller), "randlora_B": (larger, n, r)})
        state = {
            "lambdas": lambdas,
            "gammas": gammas,
            "seed": np.zeros(4, np.uint8),
            "basis_A": A[:, 0, :smaller],
            "basis_B": B[:larger, :n].reshape(larger, -1),
        }
        return Converted("randlora", r, m.alpha, state)

    def write(self, adapter: Adapter) -> Written:
        state, r = adapter.state, adapter.rank
        if "basis_A" not in state:
            raise MisfitError("its bases are drawn for each layer, and PEFT's for all layers")
        tensors = {"randlora_lambda": state["lambdas"], "randlora_gamma": state["gammas"]}
        B = state["basis_B"].reshape(len(state["basis_B"]), -1, r)
        bases = {"randlora_A": state["basis_A"][:, None], "randlora_B": B}
        settings = {"save_projection": True, "sparse": False, "very_sparse": False}
        return Written(adapter, tensors, settings, bases)

    def shares(self, modules: Modules) -> Tensors:
        """The bases from which layers take slices: for all layers together, and for each layer."""
        # PEFT sizes it for the most outputs and the most inputs of all layers.
        most = np.max([written.adapter.layout.matrix for written in modules.values()], axis=0)
        smaller, larger = sorted(most.tolist())
        r = next(iter(modules.values())).adapter.rank
        sizes = {"randlora_A": (r, 1, smaller), "randlora_B": (larger, -(-smaller // r), r)}
        bases = {name: np.zeros(size, np.float32) for name, size in sizes.items()}
        for name, basis in super().shares(modules).items():
            bases[name][tuple(map(slice, basis.shape))] = basis
        prefixes = ["base_model", *(f"{PREFIX}{module}" for module in modules)]
        return {f"{prefix}.{name}": basis for prefix in prefixes for name, basis in bases.items()}


# UniLoRA: factors whose entries are taken from one vector for all layers.
class UNILORA(Type):
    """LoRA, with factors assembled from the shared vector."""

    tensors = "unilora_(?:indices|scales)_[AB]"
    layers = None
    rank = Setting("r", 4)
    shared = r"base_model\.unilora_theta_d"
    only = (("save_indices", True, "save it in PEFT with True, since only Torch draws them again"),)

    def read(self, m: Module) -> Converted:
        (theta,) = _shared_arrays(m, {"unilora_theta_d": (1,)})
        outputs, inputs = m.layout.matrix
        shapes = ((m.rank, inputs), (outputs, m.rank))
        names = [f"unilora_{kind}_{n}" for kind in ("indices", "scales") for n in "AB"]
        indices_A, indices_B, scales_A, scales_B = m.take(dict(zip(names, shapes * 2, strict=True)))
        A, B = theta[indices_A.astype(int)] * scales_A, theta[indices_B.astype(int)] * scales_B
        return m.low_rank((A, B))


# VB-LoRA: the factors consist of pieces, each a mean of the vectors with the largest logits.
_BANK = "base_model.vblora_vector_bank"


class VBLORA(Type):
    """VB-LoRA; LoRA if only the chosen weights were saved."""

    tensors = "vblora_logits_[AB](?:_topk_(?:weights|indices))?"
    methods = ("vb-lora",)
    rank = Setting("r", 4)
    shared = r"base_model\.vblora_vector_bank"
    bias = "vblora_only"

    def read(self, m: Module) -> Converted:
        k, (outputs, inputs) = m.settings.get("topk", 2), m.layout.matrix
        (bank,) = _shared_arrays(m, {"vblora_vector_bank": (k, 1)})
        n, length = bank.shape
        grids = {"A": (m.rank, inputs // length), "B": (outputs // length, m.rank)}
        names = {letter: f"vblora_logits_{letter}" for letter in grids}
        if m.tensors.keys().isdisjoint(names.values()):
            A, B = _chosen(m, grids, k, bank)
            return m.low_rank((A.reshape(m.rank, -1), B.swapaxes(1, 2).reshape(-1, m.rank)))
        A, B = m.take({names[letter]: (*grid, n) for letter, grid in grids.items()})
        state = {"logits_A": A, "logits_B": B, "sizes": np.zeros((k, length), np.uint8)}
        return Converted("vb-lora", m.rank, 1.0, state, shared={"vb-lora-bank": bank})

    def write(self, adapter: Adapter) -> Written:
        top_k, length = adapter.state["sizes"].shape
        outputs, inputs = adapter.layout.matrix
        if adapter.alpha != 1:
            raise MisfitError(f"its alpha is {adapter.alpha:g}, and PEFT's type has no scale")
        if outputs % length or inputs % length:
            raise MisfitError(f"vectors of length {length} do not divide {(outputs, inputs)}")
        tensors = {f"vblora_logits_{letter}": adapter.state[f"logits_{letter}"] for letter in "AB"}
        n = tensors["vblora_logits_A"].shape[-1]
        settings = {"num_vectors": n, "vector_length": length, "topk": top_k}
        settings["save_only_topk_weights"] = False
        return Written(adapter, tensors, settings, {_BANK: adapter.shared["bank"][:n, :length]})


def _chosen(
    m: Module, grids: dict[str, tuple[int, int]], k: int, bank: np.ndarray
) -> list[np.ndarray]:
    """The pieces of both factors, in float32. The last weight is omitted because they sum to 1."""
    shapes: dict[str, tuple[int, ...]] = {}
    for letter, grid in grids.items():
        shapes[f"vblora_logits_{letter}_topk_weights"] = (*grid, k - 1)
        shapes[f"vblora_logits_{letter}_topk_indices"] = (*grid, k)
    tensors = m.take(shapes)
    pieces: list[np.ndarray] = []
    for first, indices in (tensors[:2], tensors[2:]):
        weights = np.concatenate([first, 1 - first.sum(-1, keepdims=True)], -1)
        vectors = bank[indices.astype(int)]
        pieces.append(np.einsum("ijk,ijkl->ijl", weights, vectors).astype(np.float32))
    return pieces


# FRoD: `U (diag(l) + S) V^T` in place of `W`, where `U` is `W V^-T` with columns of length 1.
class FROD(Type):
    """LoRA of the layer's rank."""

    tensors = "frod_lambda_(?:l|s_values)"
    layers = None
    shared = r"base_model\.frod_(?:V|s_indices|s_size)\..*"

    def read(self, m: Module) -> Converted:
        inputs, (count,) = m.layout.inputs, m.shape_of("frod_lambda_s_values", 1)
        diagonal, sparse = m.take({"frod_lambda_l": (inputs,), "frod_lambda_s_values": (count,)})
        shapes = {"V": (inputs, inputs), "s_indices": (2, count)}
        category = _category(m.name)
        V, indices = _shared_arrays(m, {f"frod_{n}.{category}": s for n, s in shapes.items()})
        if len(V) != inputs:
            raise MisfitError(f"the shared matrix is {V.shape}, the layer has {inputs} inputs")
        V = V.astype(np.float64)
        U = np.linalg.solve(V, m.W.T).T
        lengths = np.linalg.norm(U, axis=0)
        U = np.where(lengths > 1e-12, U / np.maximum(lengths, 1e-12), 0).astype(np.float32)
        middle = np.diag(diagonal.astype(np.float64))
        np.add.at(middle, tuple(indices), sparse)
        return m.update((U @ middle @ V.T - m.W).astype(np.float32))


def _category(module: str) -> str:
    """The key of the layers that share a matrix: the last two components of their names."""
    names = module.split(".")
    if len(names) == 1 or names[-2].isdigit():
        return names[-1]
    if names[-3:] == ["attention", "output", "dense"]:
        return "attention_output"
    return f"{names[-2]}_{names[-1]}"


# TinyLoRA: a trained vector around matrices of the file, whose seed identifies the vector.
class TINYLORA(Type):
    """TinyLoRA, with a separate vector per layer."""

    tensors = "tinylora_[ABP]"
    rank = Setting("r", 2)
    shared = r"base_model\.tinylora_v\..*"

    def read(self, m: Module) -> Converted:
        u, (outputs, inputs) = m.settings.get("u", 64), m.layout.matrix
        r = min(m.rank, outputs, inputs)
        shapes = {"tinylora_A": (r, inputs), "tinylora_B": (outputs, r), "tinylora_P": (u, r, r)}
        A, B, P = m.take(shapes)
        (v,) = _shared_arrays(m, {f"tinylora_v.{_number_of_vector(m, P, r)}": (u,)})
        return Converted("tinylora", r, 1.0, {"lora_A": A, "lora_B": B, "P": P, "v": v})


def _number_of_vector(m: Module, P: np.ndarray, r: int) -> int:
    """The index of this module's vector. PEFT numbers the layers, and seeds by these numbers."""
    vectors = len(m.shared)
    if vectors == 1:
        return 0
    seed = m.settings.get("projection_seed", 42)
    start, numbers = P.reshape(-1)[:16] * np.sqrt(r), range(vectors)
    if P.size >= 32:
        numbers = [n for n in numbers if np.allclose(normal(P.size, seed + n), start, atol=1e-4)]
    if m.settings.get("weight_tying") or len(numbers) != 1:
        raise MisfitError("which of the trained vectors is its own is not in the file")
    return numbers[0]


def _shared_arrays(m: Module, shapes: Mapping[str, Shape]) -> list[np.ndarray]:
    """The arrays of all layers. **Raises:** `MisfitError` if an array is too small."""
    for name, shape in shapes.items():
        saved = getattr(m.shared.get(f"base_model.{name}"), "shape", None)
        if saved is None or len(saved) != len(shape) or any(map(operator.lt, saved, shape)):
            raise MisfitError(
                f"{name}, which layers share, must be {shape} or larger, and is {saved}. If the "
                "file lacks it, save it in PEFT with save_projection=True"
            )
    return [m.shared[f"base_model.{name}"] for name in shapes]
