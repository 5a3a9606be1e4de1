"""Types that train numbers at chosen positions, in the weight or in its transform.

Positions are counted row by row; the zoo stores them as digits, and Torch draws them.
"""

import dataclasses
import math

import numpy as np

from jno_lora_zoo import daubechies

from ..errors import MisfitError
from ..layouts import Shape
from .type import Adapter, Converted, Module, Modules, Setting, Settings, Type, Written


# SHiRA: trained values at entries of the weight that the file lists.
class SHIRA(Type):
    """SHiRA."""

    tensors = "shira_(?:weight|indices)"
    rank = Setting("r", 32)

    def read(self, m: Module) -> Converted:
        outputs, inputs = m.layout.matrix
        count = m.rank * (outputs + inputs)
        values, indices = m.take({"shira_weight": (count,), "shira_indices": (2, count)})
        rows, columns = indices.astype(np.int64)
        positions = to_digits(m, rows * inputs + columns)
        return Converted("shira", m.rank, 1.0, {"values": values, "positions": positions})

    def write(self, adapter: Adapter) -> Written:
        outputs, inputs = adapter.layout.matrix
        values, flat = adapter.state["values"], from_digits(adapter.state["positions"])
        if len(values) != adapter.rank * (outputs + inputs):
            raise MisfitError(f"PEFT's SHiRA of rank {adapter.rank} has more values")
        indices = np.stack([flat // inputs, flat % inputs]).astype(np.int32)
        return adapter.written({"shira_weight": values, "shira_indices": indices}, {})


# Super-Tuning: trained values at the largest entries of the weight, maybe with a LoRA.
class SUPERTUNING(Type):
    """Super-Tuning; LoRA if combined with one."""

    tensors = r"supertuning_(?:values|indices|lora_[AB]\.weight)"

    def read(self, m: Module) -> Converted:
        outputs, inputs = m.layout.matrix
        (count,) = m.shape_of("supertuning_values", 1)
        flat = m.tensors.get("supertuning_indices")
        shapes: dict[str, Shape] = {"supertuning_values": (count,)}
        if flat is None:
            flat = _largest_entries(m, count)
        else:
            shapes["supertuning_indices"] = (count,)
        if r := m.settings.get("r"):
            shapes["supertuning_lora_A.weight"] = (r, inputs)
            shapes["supertuning_lora_B.weight"] = (outputs, r)
        tensors = m.take(shapes)
        values, positions = tensors[0], to_digits(m, flat.astype(np.int64))
        if not r:
            return Converted("supertuning", 1, 1.0, {"values": values, "positions": positions})
        U = np.zeros(outputs * inputs)
        np.add.at(U, flat, values)
        A, B = tensors[-2:]
        scale = float(m.settings.get("lora_alpha") or 0) / r
        return m.update((U.reshape(outputs, inputs) + scale * (B @ A)).astype(A.dtype))

    def write(self, adapter: Adapter) -> Written:
        tensors = {
            "supertuning_values": adapter.state["values"],
            "supertuning_indices": from_digits(adapter.state["positions"]).astype(np.int32),
        }
        return adapter.written(tensors, {"save_precomputed_indices": True}, rank=1)

    def common(self, modules: Modules) -> dict[str, float]:
        """A sparsity for which PEFT computes the right number of entries in every layer."""
        sizes = [
            (written.tensors["supertuning_values"].size, np.prod(written.adapter.layout.matrix))
            for written in modules.values()
        ]
        least, most = max(n / size for n, size in sizes), min((n + 1) / size for n, size in sizes)
        middle = 1 - (least + most) / 2
        if any(int(size * (1 - middle)) != n for n, size in sizes):
            raise MisfitError("no `sparsity` for all layers gives as many entries as these have")
        return {"sparsity": float(middle)}


def _largest_entries(m: Module, count: int) -> np.ndarray:
    """The positions of the largest entries of the weight (or smallest), in PEFT's order."""
    sizes = np.abs(m.W.astype(np.float32)).reshape(-1)
    sort_keys = sizes if m.settings.get("select_top", True) is False else -sizes
    positions = np.argsort(sort_keys, kind="stable")[: count + 1]
    if len(np.unique(sort_keys[positions])) != len(positions):
        raise MisfitError(
            "equal entries of the weight leave their order open: save it in PEFT with "
            "save_precomputed_indices=True"
        )
    return positions[:count]


# FourierFT: coefficients of a Fourier transform, at positions that a seed gives.
class FOURIERFT(Type):
    """FourierFT, at the positions drawn from its seed."""

    tensors = "fourierft_spectrum"
    rank = Setting("n_frequency", 1000, "n_frequency_pattern", by_name=True)
    alpha = Setting("scaling", 150.0)
    bias = "fourier_only"

    def read(self, m: Module) -> Converted:
        (values,) = m.take({"fourierft_spectrum": (m.rank,)})
        return Converted("fourierft", 1, m.alpha, {"coefficients": values, "positions": drawn(m)})

    def write(self, adapter: Adapter) -> Written:
        return write_spectrum(adapter, "fourierft", {})


# WaveFT: coefficients of a wavelet transform, at positions that a seed gives.
_FAMILIES = {f"db{n}": n for n in range(1, 11)}


class WAVEFT(Type):
    """WaveFT, at the positions drawn from its seed."""

    tensors = "waveft_spectrum"
    rank = Setting("n_frequency", 2592, "n_frequency_pattern")
    alpha = Setting("scaling", 25.0)
    bias = "waveft_only"

    def read(self, m: Module) -> Converted:
        if m.settings.get("proportional_parameters"):
            m = dataclasses.replace(m, rank=m.shape_of("waveft_spectrum", 1)[0])
        (values,) = m.take({"waveft_spectrum": (m.rank,)})
        family = m.settings.get("wavelet_family", "db1")
        taps = np.zeros(0)
        if m.settings.get("use_idwt", True):
            if family not in _FAMILIES:
                raise MisfitError(f"wavelet_family is {family!r}, not one of 'db1' to 'db10'")
            taps = daubechies(_FAMILIES[family])
        state = {"coefficients": values, "positions": drawn(m), "low_pass": taps.astype(np.float32)}
        return Converted("waveft", 1, m.alpha, state)

    def write(self, adapter: Adapter) -> Written:
        taps = adapter.state["low_pass"]
        settings = {"use_idwt": taps.size > 0, "wavelet_family": _family(taps)}
        return write_spectrum(adapter, "waveft", {**settings, "proportional_parameters": False})


def _family(taps: np.ndarray) -> str:
    """The wavelet with these taps; the first wavelet if the taps are empty."""
    for family, n in _FAMILIES.items():
        wavelet = daubechies(n)
        if not taps.size or (taps.shape == wavelet.shape and np.allclose(taps, wavelet)):
            return family
    raise MisfitError("PEFT has no wavelet with these taps")


# Positions of entries in a weight, counted row by row: the zoo's digits, and Torch's draws.
# PEFT's default for `random_loc_seed`.
SEED = 777


def to_digits(m: Module, flat: np.ndarray) -> np.ndarray:
    """Positions in the zoo's form: four digits each, lowest first."""
    if flat.size and (flat.min() < 0 or flat.max() >= math.prod(m.layout.matrix)):
        raise MisfitError("its positions are not all within the weight")
    return ((flat[:, None] >> np.arange(0, 32, 8)) & 255).astype(np.uint8)


def from_digits(digits: np.ndarray) -> np.ndarray:
    """Positions as numbers, from four digits each."""
    return (np.rint(digits).astype(np.int64) << np.arange(0, 32, 8)).sum(1)


def drawn(m: Module) -> np.ndarray:
    """The positions that PEFT draws for this layer, as digits."""
    seed, size = m.settings.get("random_loc_seed", SEED), math.prod(m.layout.matrix)
    if size >= 2**32 // 20:
        raise MisfitError("Torch draws positions in so large a weight in another way")
    return to_digits(m, permuted(size, m.rank, seed))


def write_spectrum(adapter: Adapter, name: str, settings: Settings) -> Written:
    """Coefficients of a transform, at the positions of the default seed."""
    values, flat = adapter.state["coefficients"], from_digits(adapter.state["positions"])
    if not np.array_equal(flat, permuted(math.prod(adapter.layout.matrix), len(values), SEED)):
        raise MisfitError(f"Torch draws PEFT's positions by a seed, and {SEED} gives others")
    tensors, settings = {f"{name}_spectrum": values}, {**settings, "random_loc_seed": SEED}
    return adapter.written(tensors, settings, rank=len(values))


def permuted(size: int, count: int, seed: int) -> np.ndarray:
    """The first `count` numbers of Torch's `randperm(size)`."""
    moved: dict[int, int] = {}
    chosen = np.empty(count, np.int64)
    for i, draw in enumerate(_twister(seed, count).tolist()):
        j = i + (draw % (size - i) if i < size - 1 else 0)
        chosen[i], moved[j] = moved.get(j, j), moved.get(i, i)
    return chosen


def normal(count: int, seed: int) -> np.ndarray:
    """The first 16 of `count` (16 or more) normal numbers: Box-Muller pairs, 8 apart."""
    first = _twister(seed, 16) % 2**24 / 2**24
    radius, angle = np.sqrt(-2 * np.log(1 - first[:8])), 2 * np.pi * first[8:]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])


# On a CPU, Torch draws with a Mersenne Twister, which NumPy has too.
def _twister(seed: int, count: int) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 2**32, count, dtype=np.uint32)
