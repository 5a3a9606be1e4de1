"""Trained values at chosen entries, of the update or of its transform."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from jno_lora_zoo import daubechies

from ._drawn import permuted
from ._layouts import Layout
from ._module import Converted, Module
from ._same import Adapter, File, check_kind
from ._updates import MisfitError, factors


def shira(m: Module) -> Converted:
    """Values at entries that the file names."""
    outputs, inputs = m.layout.matrix
    count = m.rank * (outputs + inputs)
    check_kind(m.layout)
    m.check({"shira_weight": (count,), "shira_indices": (2, count)})
    rows, columns = m.parts["shira_indices"].astype(np.int64)
    state = {"values": m.parts["shira_weight"], "positions": _digits(m, rows * inputs + columns)}
    return Converted("shira", m.rank, 1.0, state)


def to_shira(adapter: Adapter) -> File:
    """An adapter of the variant `"shira"` for PEFT."""
    check_kind(adapter.layout)
    outputs, inputs = adapter.layout.matrix
    values, flat = adapter.state["values"], _flat(adapter.state["positions"])
    if len(values) != adapter.rank * (outputs + inputs):
        raise MisfitError(f"PEFT's SHiRA of rank {adapter.rank} has more values than this layer")
    indices = np.stack([flat // inputs, flat % inputs]).astype(np.int32)
    return File(adapter.rank, {"shira_weight": values, "shira_indices": indices}, {})


def supertuning(m: Module) -> Converted:
    """Values at the largest entries of the weight, with a LoRA beside them or without."""
    check_kind(m.layout)
    outputs, inputs = m.layout.matrix
    values, flat = m.parts.get("supertuning_values"), m.parts.get("supertuning_indices")
    count = 0 if values is None else values.size
    shapes: dict[str, tuple[int, ...]] = {"supertuning_values": (count,)}
    if flat is None:
        flat = _largest(m, count)
    else:
        shapes["supertuning_indices"] = (count,)
    r = m.values.get("r")
    if r:
        shapes |= {
            "supertuning_lora_A.weight": (r, inputs),
            "supertuning_lora_B.weight": (outputs, r),
        }
    m.check(shapes)
    positions = _digits(m, flat.astype(np.int64))
    if not r:
        state = {"values": m.parts["supertuning_values"], "positions": positions}
        return Converted("supertuning", 1, 1.0, state)
    U = np.zeros(outputs * inputs)
    np.add.at(U, flat, m.parts["supertuning_values"])
    A, B = (m.parts[f"supertuning_lora_{letter}.weight"] for letter in "AB")
    scale = float(m.values.get("lora_alpha") or 0) / r
    return m.low_rank(factors((U.reshape(outputs, inputs) + scale * (B @ A)).astype(A.dtype)))


def to_supertuning(adapter: Adapter) -> File:
    """An adapter of the variant `"supertuning"` for PEFT."""
    check_kind(adapter.layout)
    tensors = {
        "supertuning_values": adapter.state["values"],
        "supertuning_indices": _flat(adapter.state["positions"]).astype(np.int32),
    }
    return File(1, tensors, {"save_precomputed_indices": True})


def sparsity(modules: Mapping[str, Any]) -> dict[str, Any]:
    """A sparsity with which PEFT counts as many entries in each layer as these have values."""
    sizes = [
        (one.tensors["supertuning_values"].size, np.prod(one.layout.matrix))
        for one in modules.values()
    ]
    least, most = max(n / size for n, size in sizes), min((n + 1) / size for n, size in sizes)
    middle = 1 - (least + most) / 2
    if any(int(size * (1 - middle)) != n for n, size in sizes):
        raise MisfitError(
            "PEFT has one `sparsity` for all layers, and none gives as many entries as these have"
        )
    return {"sparsity": float(middle)}


def fourierft(m: Module) -> Converted:
    """Coefficients of a Fourier transform, at positions that a seed gives."""
    check_kind(m.layout)
    m.check({"fourierft_spectrum": (m.rank,)})
    state = {"coefficients": m.parts["fourierft_spectrum"], "positions": _drawn(m)}
    return Converted("fourierft", 1, m.alpha, state)


def waveft(m: Module) -> Converted:
    """Coefficients of a wavelet transform, at positions that a seed gives."""
    check_kind(m.layout)
    values = m.parts.get("waveft_spectrum")
    if m.values.get("proportional_parameters") and values is not None:
        m = dataclasses.replace(m, rank=values.size)
    m.check({"waveft_spectrum": (m.rank,)})
    family = m.values.get("wavelet_family", "db1")
    taps = np.zeros(0)
    if m.values.get("use_idwt", True):
        if family not in {f"db{n}" for n in range(1, 11)}:
            raise MisfitError(f"wavelet_family is {family!r}, and 'db1' to 'db10' are known here")
        taps = daubechies(int(family[2:]))
    state = {"coefficients": m.parts["waveft_spectrum"], "positions": _drawn(m)}
    return Converted("waveft", 1, m.alpha, {**state, "low_pass": taps.astype(np.float32)})


def to_fourierft(adapter: Adapter) -> File:
    """An adapter of the variant `"fourierft"` for PEFT."""
    return _to_transform(adapter, "fourierft", {})


def to_waveft(adapter: Adapter) -> File:
    """An adapter of the variant `"waveft"` for PEFT."""
    taps = adapter.state["low_pass"]
    known = {f"db{n}": daubechies(n) for n in range(1, 11)}
    family = (
        "db1"
        if not taps.size
        else next(
            (n for n, own in known.items() if taps.shape == own.shape and np.allclose(taps, own)),
            None,
        )
    )
    if family is None:
        raise MisfitError("PEFT has no wavelet with these taps")
    settings = {"use_idwt": taps.size > 0, "wavelet_family": family}
    return _to_transform(adapter, "waveft", {**settings, "proportional_parameters": False})


def _to_transform(adapter: Adapter, name: str, settings: dict[str, Any]) -> File:
    check_kind(adapter.layout)
    values, flat = adapter.state["coefficients"], _flat(adapter.state["positions"])
    if not np.array_equal(flat, permuted(_size(adapter.layout), len(values), SEED)):
        raise MisfitError(
            "Torch draws PEFT's positions by a seed, and no file holds others. Those of the seed "
            f"{SEED} can be written, which `load_peft` has read"
        )
    settings = {**settings, "random_loc_seed": SEED}
    return File(len(values), {f"{name}_spectrum": values}, settings)


# PEFT's default.
SEED = 777


def _drawn(m: Module) -> np.ndarray:
    """The positions that PEFT draws for this layer."""
    seed, size = m.values.get("random_loc_seed", SEED), _size(m.layout)
    if not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise MisfitError(f"random_loc_seed is {seed!r}, and its positions are not in the file")
    if size >= 2**32 // 20:
        raise MisfitError("Torch draws positions in so large a weight in another way")
    return _digits(m, permuted(size, m.rank, seed))


def _largest(m: Module, count: int) -> np.ndarray:
    """The positions of the largest entries of the weight (or smallest), in PEFT's order."""
    sizes = np.abs(m.W.astype(np.float32)).reshape(-1)
    ordered = sizes if m.values.get("select_top", True) is False else -sizes
    found = np.argsort(ordered, kind="stable")[: count + 1]
    if len(np.unique(ordered[found])) != len(found):
        raise MisfitError(
            "which entries train is not in the file, and entries of one size in the weight leave "
            "their order open: save it in PEFT with save_precomputed_indices=True"
        )
    return found[:count]


def _size(layout: Layout) -> int:
    outputs, inputs = layout.matrix
    return outputs * inputs


def _digits(m: Module, flat: np.ndarray) -> np.ndarray:
    """Positions, counted row by row, as the zoo has them: four digits each, lowest first."""
    if flat.size and (flat.min() < 0 or flat.max() >= _size(m.layout)):
        raise MisfitError("its positions are not all within the weight")
    return ((flat[:, None] >> np.arange(0, 32, 8)) & 255).astype(np.uint8)


def _flat(digits: np.ndarray) -> np.ndarray:
    return (np.rint(digits).astype(np.int64) << np.arange(0, 32, 8)).sum(1)
