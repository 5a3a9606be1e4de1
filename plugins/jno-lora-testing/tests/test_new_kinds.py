"""`jno-lora new`: a plugin with a method, or of a further kind, works as it is written."""

import importlib
import sys
import tomllib

import equinox as eqx
import pytest
from click.testing import CliRunner
from tests.core.asking import run

from jno.lora import Net, apply_lora
from jno_lora_routed.testing import check_router
from jno_lora_testing import run_checks, standard_cases
from jno_lora_zoo import Method, adapters_defined_in

# The other checks see the same in the adapters of the zoo.
CHECKS = ("contract", "identity-at-init", "merge-equals-call", "calibration", "state-round-trip")


@pytest.fixture
def written(tmp_path, monkeypatch, request):
    """The module that an author edits, of a new plugin of this kind."""
    kind, package = request.param, f"jno_lora_kit_{request.param}"
    which = ["--method"] if kind == "method" else ["--kind", kind]
    text = run("new", f"kit-{kind}", *which, "--output", str(tmp_path))
    folder = tmp_path / f"jno-lora-kit-{kind}"
    monkeypatch.syspath_prepend(folder / "src")
    module = importlib.import_module(package)
    assert f"Edit:    {module.__file__}" in text
    assert f"**Edit `src/{package}/__init__.py`.**" in (folder / "README.md").read_text()
    yield module
    for name in [name for name in sys.modules if name.startswith(package)]:
        del sys.modules[name]


def with_cases(module):
    """The first case of a plugin whose cases are those of its adapters."""
    plugin = importlib.import_module(f"{module.__name__}.plugin")
    where, name = plugin.jno_lora_cases.split(":")
    cases = getattr(importlib.import_module(where), name)
    assert {case.wrapper for case in cases} == {*plugin.jno_lora_wrappers()}
    return cases


@pytest.mark.slow
@pytest.mark.parametrize("written", ["layer"], indirect=True)
def test_a_kind_of_layer_has_every_method(written, getkey):
    cases = {case.wrapper.method.__name__: case for case in with_cases(written)}
    assert len(cases) > 40 and cases["LoRA"].checks == ("*",)
    assert [r.check for r in run_checks(cases["EVA"], CHECKS) if r.error] == []
    model = [written.KitLayer(6, 4, key=getkey())]
    adapted = apply_lora(model, 2, key=getkey(), wrapper=written.DoRAKitLayer)
    assert type(adapted[0]) is written.DoRAKitLayer


@pytest.mark.slow
@pytest.mark.parametrize("written", ["router"], indirect=True)
def test_a_router_keeps_its_promises(written):
    (case,) = with_cases(written)
    assert [r.check for r in run_checks(case, (*CHECKS, "parameter-count")) if r.error] == []
    check_router(written.KitRouterRouter)


@pytest.mark.slow
@pytest.mark.parametrize("written", ["command"], indirect=True)
def test_a_command_reads_a_file(written, tmp_path, getkey):
    file = tmp_path / "a.safetensors"
    Net(eqx.nn.Linear(6, 4, key=getkey())).lora(rank=2).save_adapters(
        file, metadata={"task": "digits"}
    )
    result = CliRunner().invoke(written.command, [str(file)])
    assert (result.exit_code, result.output) == (0, "task: digits\n")


@pytest.mark.slow
@pytest.mark.parametrize("written", ["method"], indirect=True)
def test_a_method_passes_the_kit_and_its_own_test_runs_every_adapter(written, tmp_path):
    adapters = adapters_defined_in(written)
    names = ["KitMethodLinear", "KitMethodConv", "KitMethodConvTranspose"]
    assert [cls.__name__ for cls in adapters] == names
    assert all(issubclass(cls, Method) for cls in adapters)
    plugin = importlib.import_module("jno_lora_kit_method.plugin")
    assert list(plugin.jno_lora_wrappers()) == adapters
    folder = tmp_path / "jno-lora-kit-method"
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    needs = [need.partition(">")[0] for need in project["dependencies"]]
    assert needs == ["jno-lora", "jno-lora-zoo"]
    tests = {}
    exec((folder / "tests" / "test_conformance.py").read_text(), tests)
    assert {"KitMethodLinear-tall", "KitMethodConv-Conv2d"} <= {
        str(case) for case in tests["CASES"]
    }
    tests["test_every_adapter_has_a_case"]()
    assert not any(result.error for result in run_checks(standard_cases(adapters[0])[0]))
    for case in importlib.import_module("jno_lora_kit_method.cases").LINEAR_CASES:
        results = run_checks(case, ("law", "parameter-count"))
        assert [(r.error, r.not_applicable) for r in results] == 2 * [(None, None)]


@pytest.mark.slow
def test_a_method_may_have_the_name_of_a_class_that_it_uses(tmp_path, monkeypatch):
    name = "linear-layer"
    run("new", name, "--method", "--output", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path / f"jno-lora-{name}" / "src")
    module = importlib.import_module("jno_lora_linear_layer")
    names = [cls.__name__ for cls in adapters_defined_in(module)]
    assert names == [f"LinearLayer{kind}" for kind in ("Linear", "Conv", "ConvTranspose")]
