"""The code on the page "In jNO" runs, in its order, and so does the example."""

import importlib.util
import pathlib
import re

import pytest
from problems import IS_OLD

import jno

ROOT = pathlib.Path(__file__).parents[3]
PAGE = ROOT / "docs" / "in-jno.md"

pytestmark = pytest.mark.skipif(
    IS_OLD or not hasattr(jno, "shape"), reason="page and example are for jNO 0.4"
)


def test_the_code_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "page"}
    for block in re.findall(r"^```py\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        exec(compile(block, PAGE.name, "exec"), namespace)
    assert len(namespace["adapters"])


def test_the_example_runs(tmp_path):
    path = ROOT / "examples" / "jno_poisson.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    errors = example.main(["--quick", "--output", str(tmp_path / "jno_poisson.png")])
    assert list(errors)[2:] == ["full fine-tuning", *example.METHODS]
    assert {path.suffix for path in tmp_path.iterdir()} == {".png", ".safetensors"}
