"""Types with matrices that PEFT draws at random and writes into the file, and Torch's draws."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ._files import PREFIX
from ._module import Converted, Module
from ._same import Adapter, File, check_kind
from ._updates import MisfitError


def permuted(size: int, count: int, seed: int) -> np.ndarray:
    """The first `count` numbers of Torch's `randperm(size)` on a CPU.

    Torch takes each from those left by a Mersenne twister, which NumPy has too.
    """
    moved: dict[int, int] = {}
    chosen = np.empty(count, np.int64)
    for i, draw in enumerate(_twister(seed, count).tolist()):
        other = i + (draw % (size - i) if i < size - 1 else 0)
        chosen[i], moved[other] = moved.get(other, other), moved.get(i, i)
    return chosen


def normal(count: int, seed: int) -> np.ndarray:
    """The first of `count` (16 or more) normal numbers that Torch draws on a CPU, to rounding.

    They come in pairs, eight apart, by the method of Box and Muller.
    """
    first = _twister(seed, 16) % 2**24 / 2**24
    radius, angle = np.sqrt(-2 * np.log(1 - first[:8])), 2 * np.pi * first[8:]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])


def _twister(seed: int, count: int) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 2**32, count, dtype=np.uint32)


def tinylora(m: Module) -> Converted:
    """A trained vector around matrices of the file. The seed of these says which vector it is."""
    check_kind(m.layout)
    P, u = m.parts.get("tinylora_P"), m.values.get("u", 64)
    r = min(m.rank, *m.layout.matrix)
    outputs, inputs = m.layout.matrix
    if P is None:
        raise MisfitError(
            "its random matrices are not in the file: save it in PEFT with save_projection=True"
        )
    m.check({"tinylora_A": (r, inputs), "tinylora_B": (outputs, r), "tinylora_P": (u, r, r)})
    v = m.shared.get(f"base_model.tinylora_v.{_number(m, P, r)}")
    if v is None or v.shape != (u,):
        raise MisfitError("its trained vector is not in the file")
    arrays = {"lora_A": m.parts["tinylora_A"], "lora_B": m.parts["tinylora_B"], "P": P}
    return Converted("tinylora", r, 1.0, {**arrays, "v": v})


def _number(m: Module, P: np.ndarray, r: int) -> int:
    """The number of the vector of this module. PEFT counts layers, and seeds by their numbers."""
    vectors = sum(name.startswith("base_model.tinylora_v.") for name in m.shared)
    if vectors == 1:
        return 0
    seed = m.values.get("projection_seed", 42)
    if m.values.get("weight_tying") or not isinstance(seed, int) or P.size < 32:
        raise MisfitError("which of the trained vectors is its own is not in the file")
    start = P.reshape(-1)[:16] * np.sqrt(r)
    found = [n for n in range(vectors) if np.allclose(normal(P.size, seed + n), start, atol=1e-4)]
    if len(found) != 1:
        raise MisfitError(
            "which of the trained vectors is its own is not in the file, and its random matrices "
            "are not those that Torch draws by the seed of one of the layers"
        )
    return found[0]


def randlora(m: Module) -> Converted:
    """Random bases that all layers share, scaled by two trained matrices."""
    check_kind(m.layout)
    r, (smaller, larger) = m.rank, sorted(m.layout.matrix)
    n = -(-smaller // r)
    shapes = {"randlora_lambda": (r, n), "randlora_gamma": (n, smaller)}
    own = {name: x for name, x in m.parts.items() if name[-1] not in "AB"}
    if own.keys() != shapes.keys() or any(own[name].shape != shapes[name] for name in own):
        m.check(shapes)
    bases = [m.shared.get(f"base_model.randlora_{letter}") for letter in "AB"]
    if bases[0] is None or bases[1] is None:
        raise MisfitError(
            "the matrices that all layers share are not in the file, and only Torch draws the same "
            "again from their seed: save it in PEFT with save_projection=True"
        )
    A, B = (basis for basis in bases if basis is not None)
    if A.ndim != 3 or B.ndim != 3 or A.shape[:2] != (r, 1) or B.shape[2] != r:
        raise MisfitError(f"the shared matrices {A.shape} and {B.shape} do not have rank {r}")
    if A.shape[2] < smaller or len(B) < larger or B.shape[1] < n:
        raise MisfitError(
            f"the shared matrices {A.shape} and {B.shape} are too small for the layer"
        )
    state = {
        "lambdas": own["randlora_lambda"],
        "gammas": own["randlora_gamma"],
        "seed": np.zeros(4, np.uint8),
        "basis_A": A[:, 0, :smaller],
        "basis_B": B[:larger, :n].reshape(larger, -1),
    }
    return Converted("randlora", r, m.alpha, state)


def to_randlora(adapter: Adapter) -> File:
    """An adapter of the variant `"randlora"` for PEFT, with its bases."""
    check_kind(adapter.layout)
    state, r = adapter.state, adapter.rank
    if "basis_A" not in state:
        raise MisfitError(
            "its bases are drawn, for each layer others, and PEFT has one pair for all layers"
        )
    tensors = {
        "randlora_lambda": state["lambdas"],
        "randlora_gamma": state["gammas"],
        "randlora_A": state["basis_A"][:, None],
        "randlora_B": state["basis_B"].reshape(len(state["basis_B"]), -1, r),
    }
    return File(r, tensors, {"save_projection": True, "sparse": False, "very_sparse": False})


def shared_bases(modules: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The one pair of bases that all layers use a part of, for all and for each."""
    # PEFT makes it for a layer with the most outputs and the most inputs of all.
    most = np.max([one.layout.matrix for one in modules.values()], axis=0)
    smaller, larger = sorted(most.tolist())
    r = next(iter(modules.values())).rank
    whole = {
        "randlora_A": np.zeros((r, 1, smaller), np.float32),
        "randlora_B": np.zeros((larger, -(-smaller // r), r), np.float32),
    }
    for name, basis in whole.items():
        own = [one.tensors[name] for one in modules.values()]
        parts = [basis[tuple(map(slice, x.shape))] for x in own]
        for x, part in zip(own, parts, strict=True):
            part[:] = x
        if any(not np.array_equal(x, part) for x, part in zip(own, parts, strict=True)):
            raise MisfitError("PEFT has one pair of bases for all layers, and these have several")
    names = ["base_model", *(f"{PREFIX}{module}" for module in modules)]
    return {f"{where}.{name}": basis for where in names for name, basis in whole.items()}
