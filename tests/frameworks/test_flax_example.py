"""The example that fine-tunes a Flax model."""

import importlib.util
import pathlib

import pytest

EXAMPLE = pathlib.Path(__file__).parents[2] / "examples/flax_finetune.py"


def test_the_example_runs(capsys):
    pytest.importorskip("sklearn")
    spec = importlib.util.spec_from_file_location("flax_finetune", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = module.main(["--quick"])
    assert found["merged"] == pytest.approx(found["adapted"], abs=0.01)
    assert "0 of 14 uses need the merged weight" in capsys.readouterr().out
