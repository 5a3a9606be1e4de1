"""`combine` against PEFT's `add_weighted_adapter`: `make test-peft`."""

import numpy as np
import pytest
from peft_cases import torch_side

from jno.lora import extract_adapters, merge_lora, swap_adapters
from jno_lora_combine import combine
from jno_lora_peft import load_peft

DENSITY = 0.37


@pytest.fixture(scope="module")
def sides(tmp_path_factory):
    """PEFT's model with two trained adapters, the layer here, and the two sets of its adapters."""
    theirs = torch_side.two_adapters()
    layer = torch_side.linear_twin(theirs.base_model.model[0].base_layer)
    sets = []
    for name in ("first", "second"):
        folder = tmp_path_factory.mktemp(name)
        with torch_side.quiet():
            theirs.save_pretrained(folder, selected_adapters=[name])
        sets.append(extract_adapters(load_peft([layer], folder / name)))
    return theirs, layer, sets


@pytest.mark.parametrize("weights", [[0.7, 0.4], [0.7, -0.4]])
@pytest.mark.parametrize("method", ["cat", "svd", "ties_svd", "magnitude_prune_svd"])
def test_methods_of_one_name_are_one_law(method, weights, sides):
    theirs, layer, sets = sides
    sparse = {"density": DENSITY} if method in ("ties_svd", "magnitude_prune_svd") else {}
    expected = torch_side.combined_update(theirs, weights, method, **sparse)
    combined = combine(sets, weights, method, **sparse)
    merged = merge_lora(swap_adapters([layer], combined))[0]
    update = np.asarray(merged.weight - layer.weight)
    assert np.linalg.norm(update - expected) < 2e-6 * np.linalg.norm(expected)
