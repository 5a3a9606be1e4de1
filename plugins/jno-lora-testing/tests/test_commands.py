"""`jno-lora new` and `jno-lora check`, with plugins whole and broken."""

import importlib.util
import os
import pathlib
import re
from dataclasses import replace

import equinox as eqx
import jax
import pytest
from kit_cases import run
from tests.core import asking
from tests.core.test_commands import GOOD

import jno_lora_zoo  # noqa: F401  # a fake plugin imports it, when `site` has taken it away
from jno.lora import apply_lora
from jno_lora_testing import CHECKS, run_checks


def test_new_writes_few_files_and_never_overwrites(tmp_path):
    run("new", "my-adapter", "--output", str(tmp_path))
    folder = tmp_path / "jno-lora-my-adapter"
    files = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    package = "src/jno_lora_my_adapter"
    assert {path for path in files if path.endswith(".py")} == {
        *(f"{package}/{name}.py" for name in ("__init__", "cases", "plugin")),
        *("tests/conftest.py", "tests/test_conformance.py"),
    }
    assert files >= {"LICENSE", "README.md", "pyproject.toml"} and len(files) == 10
    steps = (folder / ".github" / "workflows" / "test.yml").read_text()
    assert "python-version: ${{ matrix.python }}\n" in steps
    commands = ("pip install", "pytest", "jno-lora check jno-lora-my-adapter --badge badge.svg")
    assert all(f"- run: {command}" in steps for command in commands)
    assert "exists already" in run("new", "my-adapter", "--output", str(tmp_path), code=1)


def test_the_tests_that_new_writes_have_eight_devices(tmp_path, monkeypatch):
    run("new", "my-adapter", "--output", str(tmp_path))
    (conftest,) = tmp_path.rglob("conftest.py")
    eight = "--xla_force_host_platform_device_count=8"
    own = "--xla_force_host_platform_device_count=2"
    for flags, expected in ((None, eight), ("--xla_a", f"--xla_a {eight}"), (own, own)):
        monkeypatch.delenv("XLA_FLAGS", raising=False)
        if flags is not None:
            monkeypatch.setenv("XLA_FLAGS", flags)
        exec(conftest.read_text(), {})
        assert os.environ["XLA_FLAGS"] == expected


@pytest.mark.parametrize(
    ("name", "said"),
    [
        *((name, "is not a package name") for name in ("", "-", "a/b", "ünï!")),
        ("TRUE", "a class named True, which is a word of Python. Choose another name, such as my-"),
        # Names of the zoo, and words of `wrapper=`.
        *((name, "ambiguous") for name in ("LoRA-FA", "DoRALinear", "all-linear")),
    ],
)
def test_new_refuses_names_that_make_no_package_or_are_taken(name, said, site, tmp_path):
    site.plugin(
        "jno-lora-zoo",
        '"DoRALinear", variant="dora"',
        '"LoRAFALinear", variant="lora-fa"',
    )
    output = tmp_path / "written"
    assert said in run("new", "--output", str(output), "--", name, code=1)
    assert not output.exists()


def written(folder, monkeypatch, name, *options):
    """The package that `jno-lora new` writes, and its test module."""
    run("new", name, "--output", str(folder), *options)
    (code,) = folder.rglob("src/*/__init__.py")
    monkeypatch.syspath_prepend(code.parent.parent)
    (test,) = folder.rglob("test_conformance.py")
    spec = importlib.util.spec_from_file_location(f"test_of_{code.parent.name}", test)
    tests = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tests)
    return importlib.import_module(code.parent.name), tests


# The checks that see a shape, a scale or a missing bias.
_OF_SHAPES = ("law", "parameter-count", "identity-at-init", "merge-equals-call", "ranks")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("kit-gain", lambda key: eqx.nn.Linear(6, 4, key=key)),
        ("kit-embedding", lambda key: eqx.nn.Embedding(6, 4, key=key)),
    ],
)
def test_the_scaffold_passes_the_kit_and_adapts_stacked_layers(
    name, make, tmp_path, monkeypatch, getkey
):
    module, tests = written(tmp_path, monkeypatch, name)
    first, second, _ = tests.CASES
    (adapter,) = {case.wrapper for case in tests.CASES}
    assert adapter is vars(module)[adapter.__name__]
    # Its own tests run the whole kit on an embedding in `tests/packaging`.
    for result in run_checks(first) if name == "kit-gain" else ():
        assert result.error is None
        reason = result.not_applicable or "the adapter "
        assert reason.startswith("the adapter ") or reason == "the case names no `symmetries`"
    for case in tests.CASES:
        results = run_checks(case, _OF_SHAPES)
        assert [(r.error, r.not_applicable) for r in results] == len(_OF_SHAPES) * [(None, None)]
    shapes = [sorted(case.make_base().weight.shape) for case in tests.CASES]
    assert shapes == [[4, 6], [3, 5], [4, 4]]
    assert [(case.rank, case.alpha) for case in tests.CASES] == [(2, 4.0), (2, 4.0), (3, 3.0)]
    assert name != "kit-gain" or second.make_base().bias is None
    stack = eqx.filter_vmap(make)(jax.random.split(getkey(), 3))
    adapted = apply_lora([stack], 2, key=getkey(), wrapper=adapter)
    assert adapted[0].left.shape[0] == 3


def test_the_law_that_new_writes_notices_a_wrong_scale_and_a_transposed_matrix(
    tmp_path, monkeypatch
):
    module, tests = written(tmp_path, monkeypatch, "kit-mistaken")
    source = pathlib.Path(module.__file__)
    text = source.read_text()
    mistakes = {
        "(self.alpha / self.rank)": "(self.alpha / 2)",
        "self.left @ self.right)": "self.left[::-1] @ self.right)",
    }
    for right, wrong in mistakes.items():
        assert right in text
        mistaken = {"__name__": "mistaken"}
        exec(text.replace(right, wrong), mistaken)
        cases = [replace(case, wrapper=mistaken["KitMistaken"]) for case in tests.CASES]
        assert any(result.error for case in cases for result in run_checks(case, ("law",)))


def test_new_refuses_the_name_of_an_installed_adapter_but_not_of_itself(site, tmp_path):
    site.install("jno-lora-tint", GOOD.replace("Shift", "Tint").replace("shift", "tint"))
    text = run("new", "ti-nt", "--output", str(tmp_path), code=1)
    assert "'ti-nt' is a name of jno-lora-tint:Tint" in text
    assert not list(tmp_path.rglob("pyproject.toml"))
    run("new", "tint", "--output", str(tmp_path))
    assert (tmp_path / "jno-lora-tint" / "pyproject.toml").exists()


def test_check_runs_the_kit_on_a_class(site):
    module = site.install("whole", GOOD)
    text = run("check", f"{module}:Shift")
    assert re.match(r"0 of \d+ checks fail\n", text)
    assert text.endswith("\nTier: complete (all checks on 1 of 3 cases; refused: bank)\n")
    (row,) = (line.split() for line in text.splitlines() if "Shift-Linear  " in line)
    checks = len(CHECKS) - int(row[4])
    assert row[:4] == ["Shift-Linear", f"{checks}/{checks}", "-", "-"]
    # It has no optional member.
    listed = re.findall(r"[\w-]+", text.partition("Not applicable: ")[2])
    assert len(listed) >= int(row[4]) and {"law", "matrix", "penalty"} < {*listed}


def test_check_prints_advice_and_fails_for_it_only_on_request(site):
    halved = GOOD.replace("if base.weight.dtype == jnp.float64 else jnp.float32", "")
    halved = halved.replace("dtype = jnp.float64", "dtype = base.weight.dtype")
    module = site.install("halved", halved)
    text = run("check", f"{module}:Shift", "--only", "adapter-dtype")
    assert re.match(r"0 of \d+ checks fail, 1 advise\n", text)
    (row,) = (line.split() for line in text.splitlines() if "Shift-Linear  " in line)
    assert row[2:4] == ["-", "adapter-dtype"]
    assert "\nAdvice: [adapter-dtype] Shift-Linear: With bfloat16" in text
    run("check", f"{module}:Shift", "--only", "adapter-dtype", "--strict", code=1)


def test_check_runs_the_kit_on_a_distribution_and_says_what_it_cannot_check(site):
    merged_wrongly = GOOD.replace(
        "return self.merge()(x)", "return self.merge()(x) + 1 * self.delta[:, 0].astype(x.dtype)"
    )
    hidden = """
class Hidden(Shift):
    @classmethod
    def applies_to(cls, leaf):
        return False
"""
    site.install("wrong", merged_wrongly.replace("[Shift]", "[Shift, Hidden]") + hidden)
    text = run("check", "wrong", "--only", "merge-equals-call", code=1)
    assert "\n[merge-equals-call] Shift-Linear" in text and "What to do" in text
    assert "they claim no layer that this command knows: Hidden." in text
    assert "Tier" not in text


def test_check_takes_the_cases_that_a_plugin_names(site):
    site.install(
        "outside",
        GOOD
        + """
jno_lora_cases = f"{__name__}:cases"
def cases():
    from jno_lora_testing import WrapperCase
    layer, x = eqx.nn.Linear, jnp.ones(3)
    make = lambda key: layer(3, 2, key=key)
    return WrapperCase(Shift, make, lambda key: (x,), name="named")
""",
    )
    asked = ("check", "outside", "--only", "contract")
    (row,) = (line.split() for line in run(*asked).splitlines() if "1/1" in line)
    assert row[0] == "named"
    assert "Shift-Linear" in run(*asked, "--layer", "Linear")


# A kind of layer that lacks `mesh_axes`.
UNFINISHED = """
import jno_lora_zoo as zoo

class Own(eqx.Module):
    weight: object

class OwnLayer(zoo.LayerKind):
    @classmethod
    def fits(cls, leaf):
        return type(leaf) is Own and leaf.weight.ndim == 2

    @classmethod
    def matrix(cls, layer):
        return layer.weight

    @classmethod
    def with_matrix(cls, base, matrix):
        return Own(matrix)

@hookimpl
def jno_lora_wrappers():
    import sys
    globals().update(zoo.adapters_for(OwnLayer, __name__))
    return zoo.adapters_defined_in(sys.modules[__name__])
"""


def test_a_kind_of_layer_that_lacks_a_member_is_trouble_in_every_command(site):
    site.install("unfinished", UNFINISHED)
    said = "LoRAOwn is not complete. OwnLayer and LoRA lack `mesh_axes`: The mesh axes along which"
    # In a table, a long text is folded.
    listed = " ".join(asking.run("plugins").split())
    assert "LoRAOwn is not complete." in listed and "lack `mesh_axes`" in listed
    doctor = " ".join(asking.run("doctor", code=1).split())
    assert said in doctor and "TROUBLE: The plugin unfinished 1.0" in doctor
    assert said in " ".join(run("check", "unfinished", code=1).split())
    at_import = "globals().update(zoo.adapters_for(OwnLayer, __name__))\n\n@hookimpl"
    made = site.install("made", UNFINISHED.replace("@hookimpl", at_import))
    assert said in " ".join(run("check", f"{made}:CASES", code=1).split())


def test_check_of_a_plugin_without_adapters_says_so_and_writes_no_badge(site, tmp_path):
    site.install("asked", "@hookimpl\ndef jno_lora_doctor(facts, troubles):\n    pass\n")
    text = run("check", "asked", "--badge", str(tmp_path / "badge.svg"))
    assert "asked loads, and has no adapters to check." in text and "Tier" not in text
    assert not list(tmp_path.glob("*.svg"))


def test_check_says_what_it_cannot_find(site):
    assert "cannot be imported" in run("check", "nowhere_at_all:Class", code=1)
    assert "must be a subclass" in run("check", "json:loads", code=1)
    assert "No installed plugin" in run("check", "not-installed", code=1)
