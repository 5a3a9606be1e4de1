"""WaveFT: coefficients of a wavelet transform, at positions that a seed gives."""

import dataclasses

import numpy as np

from jno_lora_zoo import daubechies

from ._positions import drawn, write_spectrum
from ._type import Adapter, Converted, MisfitError, Module, Setting, Type, Written

_FAMILIES = {f"db{n}": n for n in range(1, 11)}


class WAVEFT(Type):
    """WaveFT, at the positions that its seed gives."""

    tensors = "waveft_spectrum"
    rank = Setting("n_frequency", 2592, "n_frequency_pattern")
    alpha = Setting("scaling", 25.0)
    settings = "random_loc_seed wavelet_family use_idwt proportional_parameters"
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
    """The wavelet with these taps; the first wavelet if there are no taps."""
    for family, n in _FAMILIES.items():
        wavelet = daubechies(n)
        if not taps.size or (taps.shape == wavelet.shape and np.allclose(taps, wavelet)):
            return family
    raise MisfitError("PEFT has no wavelet with these taps")
