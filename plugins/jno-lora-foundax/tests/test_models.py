"""Whole models of foundax: adapted, trained a little, merged."""

import numpy as np
import pytest
from foundax.architectures import fno, mgno
from foundax_cases import filled, normal, perturbed, run, same_form
from zoo_cases import assert_close

from jno.lora import apply_lora, merge_lora
from jno.lora.extending import adapted_layers

# Layers that the default adapters cannot reach, and how often each of ours is used.
MODELS = {
    "MgNO": (
        lambda key: mgno.MgNO(
            (8, 8), 1, 4, 2, num_iteration=[(1, 1), (1, 1)], output_dim=2, key=key
        ),
        normal(8, 8, 2),
        {"LoRAChannelLastConv": 11, "LoRAChannelLastConvTranspose": 1},
    ),
    "FNO2D": (
        lambda key: fno.FNO2D(2, 6, 3, d_vars=2, n_layers=1, key=key),
        normal(6, 5, 2),
        {"LoRASpectral": 1, "LoRALinear": 3, "LoRAConv": 1},
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_an_adapted_model_starts_as_the_model_moves_and_merges(name, getkey):
    make, data, expected = MODELS[name]
    base, inputs = filled(make, getkey()), data(getkey())
    adapted = apply_lora(base, 2, 4.0, key=getkey(), wrapper=["auto"])
    found = [type(adapter).__name__ for _, adapter in adapted_layers(adapted)]
    assert {cls: found.count(cls) for cls in expected} == expected
    trained = perturbed(adapted, size=0.2)
    merged = merge_lora(trained)
    assert same_form(merged, base)
    y, first, later, plain = (run(m, *inputs) for m in (base, adapted, trained, merged))
    assert_close(first, y, 1e-4)
    assert_close(plain, later, 1e-4)
    assert np.max(np.abs(later - y)) > 1e-3 * np.max(np.abs(y))
