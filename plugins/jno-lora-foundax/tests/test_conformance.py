"""Adapters on layers of each kind keep every promise, as the kit checks it.

Nearly all time goes into compiling: `test_law.py` and `test_spectral.py` have every adapter and
every layer, with fewer checks.
"""

import functools

from foundax_cases import CONV_TRANSPOSES, CONVS, SPECTRAL, SUBSAMPLED, filled

import jno_lora_foundax as package
from jno.lora.testing import WrapperCase, parametrize_with_checks

R = 3
# The number of parameters, from the sizes of the matrix.
ADAPTERS = {
    ("PiSSAChannelLastConv", "Conv2dNHWC"): lambda out, inp: R * (inp + out),
    ("DoRAChannelLastConv", "Conv1dNHWC"): lambda out, inp: R * (inp + out) + out,
    ("LoRAFAChannelLastConvTranspose", "ConvTranspose1d"): lambda out, inp: R * out,
    ("LoRASubsampledLinear", "subsample_in"): lambda out, inp: R * (inp + out),
    ("LoRASpectral", "SpectralConv2d"): lambda out, inp: R * (inp + out),
}
LAYERS = CONVS | CONV_TRANSPOSES | SUBSAMPLED | SPECTRAL


def case(adapter, name, count):
    layer = LAYERS[name]
    return WrapperCase(
        getattr(package, adapter),
        base=functools.partial(filled, layer.make),
        inputs=layer.data,
        rank=R,
        call=layer.call,
        parameters=count(layer.outputs, layer.inputs) * layer.modes,
        name=f"{adapter}-{name}",
    )


@parametrize_with_checks(case(*names, count) for names, count in ADAPTERS.items())
def test_conformance(check):
    check()
