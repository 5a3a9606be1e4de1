"""Examples that need packages which `make test-models` installs."""

import importlib.util
import os
import pathlib

import pytest

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"


def load(name):
    """The example as a module of its own."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def skip_without(packages):
    """Skip the test if a distribution is missing: `packages` says what each is imported as.

    None of them is imported to find it. `make test-models` must have them all.
    """
    missing = [d for d, name in packages.items() if importlib.util.find_spec(name) is None]
    if missing:
        message = f"needs {', '.join(missing)}, which `make test-models` installs"
        if os.environ.get("JNO_LORA_TEST_MODELS"):
            raise ImportError(message)
        pytest.skip(message, allow_module_level=True)
