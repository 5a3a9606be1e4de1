"""VB-LoRA: factors of pieces, each a mean of the vectors that its largest logits choose."""

import numpy as np

from ._type import Adapter, Converted, MisfitError, Module, Setting, Type, Written

_BANK = "base_model.vblora_vector_bank"


class VBLORA(Type):
    """VB-LoRA; LoRA if only the chosen weights were saved."""

    tensors = "vblora_logits_[AB](?:_topk_(?:weights|indices))?"
    methods = ("vb-lora",)
    rank = Setting("r", 4)
    shared = r"base_model\.vblora_vector_bank"
    settings = (
        "topk num_vectors vector_length save_only_topk_weights vblora_dropout "
        "init_vector_bank_bound init_logits_std"
    )
    bias = "vblora_only"

    def read(self, m: Module) -> Converted:
        bank, k = m.shared.get(_BANK), m.settings.get("topk", 2)
        if bank is None or bank.ndim != 2 or k > len(bank):
            raise MisfitError("the bank of vectors is missing, or `topk` is not a number of them")
        outputs, inputs = matrix = m.layout.matrix
        n, length = bank.shape
        if outputs % length or inputs % length:
            raise MisfitError(_misfit(length, matrix))
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
            raise MisfitError(_misfit(length, adapter.layout.matrix))
        tensors = {f"vblora_logits_{letter}": adapter.state[f"logits_{letter}"] for letter in "AB"}
        n = tensors["vblora_logits_A"].shape[-1]
        settings = {"num_vectors": n, "vector_length": length, "topk": top_k}
        settings["save_only_topk_weights"] = False
        return Written(adapter, tensors, settings, {_BANK: adapter.shared["bank"][:n, :length]})


def _misfit(length: int, matrix: tuple[int, int]) -> str:
    return f"its vectors of length {length} do not divide the {matrix} of its weight"


def _chosen(
    m: Module, grids: dict[str, tuple[int, int]], k: int, bank: np.ndarray
) -> list[np.ndarray]:
    """The pieces of both factors, in float32. The last weight is missing, for they sum to 1."""
    shapes: dict[str, tuple[int, ...]] = {}
    for letter, grid in grids.items():
        shapes[f"vblora_logits_{letter}_topk_weights"] = (*grid, k - 1)
        shapes[f"vblora_logits_{letter}_topk_indices"] = (*grid, k)
    tensors = m.take(shapes)
    pieces: list[np.ndarray] = []
    for first, indices in (tensors[:2], tensors[2:]):
        chosen = indices.astype(int)
        if chosen.min() < 0 or chosen.max() >= len(bank):
            raise MisfitError(f"it chooses vectors that the bank of {len(bank)} lacks")
        weights = np.concatenate([first, 1 - first.sum(-1, keepdims=True)], -1)
        pieces.append(np.einsum("ijk,ijkl->ijl", weights, bank[chosen]).astype(np.float32))
    return pieces
