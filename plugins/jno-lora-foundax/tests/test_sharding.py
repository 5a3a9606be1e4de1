"""Where the adapters of sharded layers lie. (That they run there is the kit's to check.)"""

import jax
import numpy as np
import pytest
from foundax_cases import CONVS, SPECTRAL, SUBSAMPLED, filled
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

from jno.lora import apply_lora

# The layer, how its weights are cut, the adapter, and where its fields lie.
CUT_OUTPUTS, CUT_INPUTS = P(None, None, None, "x"), P(None, None, "x")
CASES = [
    (CONVS["Conv2d"], CUT_INPUTS, {}, {"lora_A": P(None, "x"), "lora_B": P()}),
    # A row of the matrix is not cut evenly.
    (CONVS["Conv2d"], P(None, "x"), {}, {"lora_A": P(), "lora_B": P()}),
    (CONVS["grouped"], CUT_INPUTS, {}, {"lora_A": P(), "lora_B": P("x")}),
    (SUBSAMPLED["subsample_out"], P("x"), {}, {"lora_A": P(), "lora_B": P("x")}),
    (
        SPECTRAL["SpectralConv2d"],
        P("x"),
        {},
        {"lora_A/weight_2": P(*[None] * 4, "x"), "lora_B/weight_2": P()},
    ),
    (
        SPECTRAL["SpectralConv2d"],
        CUT_OUTPUTS,
        {},
        dict.fromkeys(("lora_A/weight_1", "lora_B/weight_1"), P(None, None, "x")),
    ),
    (SPECTRAL["AFNO2D"], P("x"), {}, {"lora_A/w1": P("x"), "lora_B/w1": P("x")}),
    (SPECTRAL["AFNO2D"], CUT_OUTPUTS, {}, {"lora_A/w2": P(), "lora_B/w2": P(None, None, "x")}),
    (
        SPECTRAL["SpectralConv2d"],
        P("x"),
        {"wrapper": "LoRASpectral", "options": {"bands": {2: 1}}},
        {"lora_A/weight_1_below_2": P(None, None, None, "x")},
    ),
    (
        SPECTRAL["SpectralConv2d"],
        CUT_OUTPUTS,
        {"wrapper": "GainSpectral"},
        {"gain/weight_1": P(None, None, "x")},
    ),
]


@pytest.mark.parametrize(("layer", "spec", "arguments", "fields"), CASES)
def test_fields_lie_as_the_weight_does(layer, spec, arguments, fields):
    mesh, key = Mesh(np.array(jax.devices()[:2]), ("x",)), jax.random.key(0)

    def place(leaf):
        fits = leaf.ndim > 1 and leaf.ndim >= len(spec)
        return jax.device_put(leaf, NamedSharding(mesh, spec if fits else P()))

    placed = jax.tree.map(place, filled(layer.make, key))
    adapted = apply_lora(placed, 2, 4.0, key=key, **{"wrapper": "auto", **arguments})
    for name, expected in fields.items():
        field, _, family = name.partition("/")
        array = getattr(adapted, field)[family] if family else getattr(adapted, field)
        assert array.sharding.is_equivalent_to(NamedSharding(mesh, expected), array.ndim), name
