"""`jno-lora new --method`: a plugin with a method of the zoo's form."""

import importlib
import sys
import tomllib

import pytest
from tests.core.asking import run

from jno.lora.testing import run_checks, standard_cases
from jno_lora_zoo import Method, adapters_defined_in


@pytest.fixture
def written(tmp_path, monkeypatch):
    run("new", "kit-turn", "--method", "--output", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path / "jno-lora-kit-turn" / "src")
    yield tmp_path / "jno-lora-kit-turn"
    for name in [name for name in sys.modules if name.startswith("jno_lora_kit_turn")]:
        del sys.modules[name]


def test_it_passes_the_kit(written):
    module = importlib.import_module("jno_lora_kit_turn")
    adapters = adapters_defined_in(module)
    assert [cls.__name__ for cls in adapters] == [
        "KitTurnLinear",
        "KitTurnConv",
        "KitTurnConvTranspose",
    ]
    assert all(issubclass(cls, Method) for cls in adapters)
    plugin = importlib.import_module("jno_lora_kit_turn.plugin")
    assert list(plugin.jno_lora_wrappers()) == adapters
    for result in run_checks(standard_cases(adapters[0])[0]):
        assert result.error is None


def test_it_depends_on_the_zoo_and_its_test_runs_every_adapter(written):
    project = tomllib.loads((written / "pyproject.toml").read_text())["project"]
    assert [need.partition(">")[0] for need in project["dependencies"]] == [
        "jno-lora",
        "jno-lora-zoo",
    ]
    assert "zoo's kinds of layer" in project["description"]
    tests = {}
    exec((written / "tests" / "test_conformance.py").read_text(), tests)
    names = {str(case) for case in tests["CASES"]}
    assert {"KitTurnLinear-tall", "KitTurnConv-Conv2d"} <= names
    tests["test_every_adapter_has_a_case"]()
    for case in importlib.import_module("jno_lora_kit_turn.cases").LINEAR_CASES:
        results = run_checks(case, ("law", "parameter-count"))
        assert [(r.error, r.not_applicable) for r in results] == 2 * [(None, None)]


def test_a_method_may_have_the_name_of_a_class_that_it_uses(tmp_path, monkeypatch):
    name = "linear-layer"
    run("new", name, "--method", "--output", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path / f"jno-lora-{name}" / "src")
    module = importlib.import_module("jno_lora_linear_layer")
    names = [cls.__name__ for cls in adapters_defined_in(module)]
    assert names == [f"LinearLayer{kind}" for kind in ("Linear", "Conv", "ConvTranspose")]
