"""Types whose adapters share trained or random arrays: VeRA and VB-LoRA."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ._module import Converted, Module
from ._same import Adapter, File, check_kind
from ._updates import MisfitError

BANK = "base_model.vblora_vector_bank"


def vera(m: Module) -> Converted:
    """`diag(b) B diag(d) A`, with the matrices that all layers share."""
    check_kind(m.layout)
    m.check({"vera_lambda_b": (m.layout.outputs,), "vera_lambda_d": (m.rank,)})
    projections(m, "vera", m.rank)
    own = {"b": m.parts["vera_lambda_b"], "d": m.parts["vera_lambda_d"]}
    shared = {f"vera-{letter}": m.shared[f"base_model.vera_{letter}"] for letter in "AB"}
    return Converted("vera-shared", m.rank, 1.0, own, shared=shared)


def to_vera(adapter: Adapter) -> File:
    """An adapter of the variant `"vera-shared"` for PEFT."""
    check_kind(adapter.layout)
    (outputs, inputs), r = adapter.layout.matrix, adapter.rank
    b = np.asarray(adapter.alpha, adapter.state["b"].dtype) * adapter.state["b"]
    shared = {
        "base_model.vera_A": adapter.shared["A"][:r, :inputs],
        "base_model.vera_B": adapter.shared["B"][:outputs, :r],
    }
    tensors = {"vera_lambda_b": b, "vera_lambda_d": adapter.state["d"]}
    return File(r, tensors, {"save_projection": True}, shared=shared)


def projections(m: Module, prefix: str, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """The part for this layer of the random matrices that all layers share."""
    names = [f"base_model.{prefix}_{letter}" for letter in "AB"]
    if not all(name in m.shared for name in names):
        raise MisfitError(
            "the matrices that all layers share are not in the file, and only Torch draws the same "
            "again from their seed: save it in PEFT with save_projection=True"
        )
    A, B = (m.shared[name] for name in names)
    outputs, inputs = m.layout.matrix
    if A.ndim != 2 or B.ndim != 2 or (len(A), B.shape[1]) != (rank, m.rank):
        raise MisfitError(f"the shared matrices {A.shape} and {B.shape} do not have rank {m.rank}")
    if A.shape[1] < inputs or len(B) < outputs:
        raise MisfitError(
            f"the shared matrices {A.shape} and {B.shape} are too small for the layer"
        )
    return A[:, :inputs], B[:outputs]


def vblora(m: Module) -> Converted:
    """Factors of pieces, each a mean of the vectors that its largest logits choose.

    A file with the chosen logits alone (`save_only_topk_weights`) becomes LoRA: it has no others
    to train.
    """
    check_kind(m.layout)
    bank, k = m.shared.get(BANK), m.values.get("topk", 2)
    if bank is None or bank.ndim != 2 or not isinstance(k, int) or not 0 < k <= len(bank):
        raise MisfitError("the bank of vectors is missing, or `topk` is not a number of them")
    outputs, inputs = m.layout.matrix
    n, length = bank.shape
    if outputs % length or inputs % length:
        raise MisfitError(
            f"its vectors of length {length} do not divide the ({outputs}, {inputs}) of its weight"
        )
    shapes = {"A": (m.rank, inputs // length), "B": (outputs // length, m.rank)}
    if any(f"vblora_logits_{part}" in m.parts for part in shapes):
        m.check({f"vblora_logits_{part}": (*shape, n) for part, shape in shapes.items()})
        state = {f"logits_{part}": m.parts[f"vblora_logits_{part}"] for part in shapes}
        sizes = np.zeros((k, length), np.uint8)
        return Converted(
            "vb-lora", m.rank, 1.0, {**state, "sizes": sizes}, shared={"vb-lora-bank": bank}
        )
    A, B = (_chosen(m, part, shape, k, bank) for part, shape in shapes.items())
    return m.low_rank((A.reshape(m.rank, -1), B.swapaxes(1, 2).reshape(-1, m.rank)))


def _chosen(m: Module, part: str, shape: tuple[int, int], k: int, bank: np.ndarray) -> np.ndarray:
    """The pieces of a factor, in float32. All but the last weight are there, for they sum to 1."""
    name = f"vblora_logits_{part}"
    m.check(
        {
            f"vblora_logits_{letter}_topk_{what}": m.parts[it].shape
            for letter in "AB"
            for what in ("weights", "indices")
            if letter != part
            if (it := f"vblora_logits_{letter}_topk_{what}") in m.parts
        }
        | {f"{name}_topk_weights": (*shape, k - 1), f"{name}_topk_indices": (*shape, k)}
    )
    first, chosen = m.parts[f"{name}_topk_weights"], m.parts[f"{name}_topk_indices"].astype(int)
    if chosen.min() < 0 or chosen.max() >= len(bank):
        raise MisfitError(f"{name}: it chooses vectors that the bank of {len(bank)} lacks")
    weights = np.concatenate([first, 1 - first.sum(-1, keepdims=True)], -1)
    return np.einsum("ijk,ijkl->ijl", weights, bank[chosen]).astype(np.float32)


def to_vblora(adapter: Adapter) -> File:
    """An adapter of the variant `"vb-lora"` for PEFT, with all logits."""
    check_kind(adapter.layout)
    top_k, length = adapter.state["sizes"].shape
    outputs, inputs = adapter.layout.matrix
    if adapter.alpha != 1:
        raise MisfitError(f"its alpha is {adapter.alpha:g}, and PEFT's type has no scale")
    if outputs % length or inputs % length:
        raise MisfitError(
            f"PEFT needs vectors whose length, here {length}, divides the ({outputs}, {inputs}) of "
            "the weight"
        )
    tensors = {f"vblora_logits_{part}": adapter.state[f"logits_{part}"] for part in "AB"}
    n = tensors["vblora_logits_A"].shape[-1]
    settings = {"num_vectors": n, "vector_length": length, "topk": top_k}
    return File(
        adapter.rank,
        tensors,
        {**settings, "save_only_topk_weights": False},
        shared={BANK: adapter.shared["bank"][:n, :length]},
    )


def shared_tensors(modules: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The tensors that all modules use a part of, as large as the largest part."""
    whole: dict[str, np.ndarray] = {}
    for name in next(iter(modules.values())).shared:
        parts = [one.shared[name] for one in modules.values()]
        whole[name] = np.zeros(np.max([x.shape for x in parts], axis=0), parts[0].dtype)
        for part in parts:
            whole[name][tuple(map(slice, part.shape))] = part
    return whole
