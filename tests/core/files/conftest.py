"""A path for a file, and a file that is in order."""

import jax
import pytest

from jno.lora import apply_lora, save_adapters

from ..toys import ToyLinear, ToyScale
from ._tools import small_model


@pytest.fixture
def file(tmp_path):
    return tmp_path / "adapters.safetensors"


@pytest.fixture(autouse=True)
def _no_plugins(registry):
    """The adapters here come from no plugin, and none is looked for."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of a file that is in order."""
    file = tmp_path_factory.mktemp("whole") / "whole.safetensors"
    specs = [{"target": "a", "wrapper": ToyLinear}, {"target": "b", "wrapper": ToyScale}]
    model = apply_lora(small_model(), 1, key=jax.random.key(1), specs=specs)
    save_adapters(model, file, metadata={"nu": 0.05, "grid": [1, "a"]})
    return file.read_bytes()
