"""Adapters on layers of each kind keep every promise, as the kit checks it.

One method of each kind runs the checks of the kind. The whole kit runs on DoRA, which has a field
for each output, on dictionaries of arrays, and on bottlenecks.
"""

import dataclasses
import functools

import equinox as eqx
import pytest
from foundax.architectures import fno
from foundax_cases import CONV_TRANSPOSES, CONVS, SPECTRAL, SUBSAMPLED, Layer, filled, normal
from zoo_cases import check_kind

import jno_lora_foundax as package
from jno_lora_testing import WrapperCase, cyclic_shift, parametrize_with_checks

R = 3
# The number of parameters, from the sizes of the matrix.
ADAPTERS = {
    ("DoRAChannelLastConv", "Conv1dNHWC"): lambda out, inp: R * (inp + out) + out,
    ("LoRAFAChannelLastConvTranspose", "ConvTranspose1d"): lambda out, inp: R * out,
    ("LoRASubsampledLinear", "subsample_in"): lambda out, inp: R * (inp + out),
    ("LoRASpectral", "SpectralConv2d"): lambda out, inp: R * (inp + out),
    ("GainSpectral", "SpectralConv1d"): lambda out, inp: 1,
    ("CPSpectral", "SpectralConv1d"): lambda out, inp: R * (out + inp + 3) // 3,  # of 3 modes
    ("BottleneckChannelLastConv", "Conv1dNHWC"): lambda out, inp: R * (inp + out + 1),
    ("BottleneckLinear", "Linear"): lambda out, inp: R * (inp + out + 1),
    ("BottleneckConv", "Conv1d"): lambda out, inp: R * (inp + out + 1),
}
METHODS_OF_THE_PLUGIN = ("LoRASpectral-SpectralConv2d", "BottleneckChannelLastConv-Conv1dNHWC")
METHOD_OF_THE_ZOO = "DoRAChannelLastConv-Conv1dNHWC"
# Those of Equinox.
OTHERS = {
    "Linear": Layer(lambda key: eqx.nn.Linear(4, 5, key=key), normal(4), 5, 4),
    "Conv1d": Layer(lambda key: eqx.nn.Conv1d(4, 6, 2, groups=2, key=key), normal(4, 5), 6, 4),
}


def _periodic(cls, modes, key):
    return cls(4, 5, *modes, linear_conv=False, key=key)


# On a periodic grid: without zeros after the input, a spectral layer keeps cyclic shifts.
PERIODIC = {
    name: SPECTRAL[name]._replace(make=functools.partial(_periodic, cls, modes))
    for name, cls, modes in (
        ("SpectralConv1d", fno.SpectralConv1d, (3,)),
        ("SpectralConv2d", fno.SpectralConv2d, (3, 2)),
    )
}
SHIFTS = {"SpectralConv1d": (cyclic_shift(0),), "SpectralConv2d": (cyclic_shift((0, 1)),)}
LAYERS = CONVS | CONV_TRANSPOSES | SUBSAMPLED | PERIODIC | OTHERS


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
        symmetries=SHIFTS.get(name, ()),
    )


# Of 3 x 2 modes in each of two corners, frequency 0 has one, and frequency 1 three and two.
BANDS = dataclasses.replace(
    case("LoRASpectral", "SpectralConv2d", max),
    options={"bands": {1: 2, 2: 1}},
    parameters=2 * (2 * 1 + 1 * 5) * (5 + 4),
    name="LoRASpectral-bands",
)


CASES = [*(case(*names, count) for names, count in ADAPTERS.items()), BANDS]


@parametrize_with_checks([case for case in CASES if str(case) in METHODS_OF_THE_PLUGIN])
def test_conformance(check):
    check()


@pytest.mark.slow
@parametrize_with_checks([case for case in CASES if str(case) == METHOD_OF_THE_ZOO])
def test_conformance_of_a_method_of_the_zoo(check):
    check()


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=[] if str(case) == METHOD_OF_THE_ZOO else pytest.mark.slow)
        for case in CASES
        if str(case) not in METHODS_OF_THE_PLUGIN
    ],
    ids=str,
)
def test_the_checks_of_the_kind(case):
    check_kind(case)
