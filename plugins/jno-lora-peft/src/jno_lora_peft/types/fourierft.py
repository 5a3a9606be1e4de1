"""FourierFT: coefficients of a Fourier transform, at positions that a seed gives."""

from ._positions import drawn, write_spectrum
from ._type import Adapter, Converted, Module, Setting, Type, Written


class FOURIERFT(Type):
    """FourierFT, at the positions that its seed gives."""

    tensors = "fourierft_spectrum"
    rank = Setting("n_frequency", 1000, "n_frequency_pattern", by_name=True)
    alpha = Setting("scaling", 150.0)
    settings = "random_loc_seed"
    bias = "fourier_only"

    def read(self, m: Module) -> Converted:
        (values,) = m.take({"fourierft_spectrum": (m.rank,)})
        return Converted("fourierft", 1, m.alpha, {"coefficients": values, "positions": drawn(m)})

    def write(self, adapter: Adapter) -> Written:
        return write_spectrum(adapter, "fourierft", {})
