"""`combine` against PEFT's `add_weighted_adapter`: `make test-peft`."""

import importlib.util
import os

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jno.lora import combine, extract_adapters, merge_lora, swap_adapters
from jno.lora.peft import load_peft

if importlib.util.find_spec("peft") is None:
    message = "needs torch and peft, which `make test-peft` installs"
    if os.environ.get("JNO_LORA_TEST_PEFT"):
        raise ImportError(message)
    pytest.skip(message, allow_module_level=True)

from peft_cases import torch_side

DENSITY = 0.37


@pytest.fixture(scope="module")
def sides(tmp_path_factory):
    """PEFT's model with two trained adapters, the layer here, and the two sets of its adapters."""
    theirs = torch_side.two_adapters()
    layer = eqx.nn.Linear(20, 24, key=jax.random.key(0))
    arrays = [jnp.asarray(array) for array in torch_side.linear_of(theirs)]
    layer = eqx.tree_at(lambda layer: (layer.weight, layer.bias), layer, tuple(arrays))
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


@pytest.mark.parametrize("method", ["linear", "ties", "magnitude_prune"])
def test_methods_of_peft_on_factors_are_other_laws(method, sides):
    """The page says how far they are: if this fails, PEFT has changed, and the page is wrong."""
    theirs, layer, sets = sides
    sparse = {} if method == "linear" else {"density": DENSITY, "rank": 4}
    settings = {"density": DENSITY} if sparse else {}
    expected = torch_side.combined_update(theirs, [0.7, 0.4], method, **settings)
    merged = merge_lora(swap_adapters([layer], combine(sets, [0.7, 0.4], method, **sparse)))[0]
    update = np.asarray(merged.weight - layer.weight)
    assert 0.4 < np.linalg.norm(update - expected) / np.linalg.norm(expected) < 1
