"""The command line's plugins, adapters, doctor, new and check, with plugins whole and broken."""

import errno
import importlib.util
import json
import os
import pathlib
import platform
import re
import subprocess
import sys
import threading
from dataclasses import replace
from textwrap import dedent

import equinox as eqx
import jax
import pytest
from click.testing import CliRunner

import jno.lora
from jno.lora import (
    apply_lora,
)
from jno.lora._commands import installed
from jno.lora._commands._cli import cli
from jno.lora._commands.distributions import is_within
from jno.lora._commands.installed import plugins_as_table
from jno.lora.testing import CHECKS, run_checks

from .asking import run

GOOD = """
class Shift(LoRAWrapper):
    adapter_fields = ("delta",)
    variant = "shift"
    paper = "0000.00000"
    formula = "out"
    base: eqx.nn.Linear
    delta: object
    rank: int = eqx.field(static=True)
    alpha: float = eqx.field(static=True)

    @classmethod
    def applies_to(cls, leaf):
        exact = type(leaf) is eqx.nn.Linear and eqx.is_inexact_array(leaf.weight)
        return exact and leaf.weight.ndim == 2

    def __init__(self, base, rank, alpha, *, key):
        import jax.numpy as jnp
        self.base, self.rank, self.alpha = base, rank, alpha
        dtype = jnp.float64 if base.weight.dtype == jnp.float64 else jnp.float32
        self.delta = jnp.zeros((base.weight.shape[0], 1), dtype)

    def __call__(self, x):
        return self.merge()(x)

    def merge(self):
        weight = self.base.weight.astype(self.delta.dtype) + self.delta + 0 * self.base.weight
        return eqx.tree_at(lambda l: l.weight, self.base, weight.astype(self.base.weight.dtype))

@hookimpl
def jno_lora_wrappers():
    return [Shift]
"""
GOOD = GOOD.replace(" + self.delta + 0 * self.base.weight", " + _wide(self.delta, self.base)")
GOOD = (
    "import jax.numpy as jnp\n"
    "def _wide(delta, base):\n"
    "    return jnp.broadcast_to(delta, base.weight.shape)\n" + GOOD
)


def test_plugins_lists_whole_and_broken_ones(site):
    site.install("whole", GOOD, version="1.2")
    site.install("broken", "raise RuntimeError('no such thing')", version="0.3")
    text = run("plugins")
    assert "whole" in text
    assert "failed: RuntimeError: no such thing" in text
    found = {record["distribution"]: record for record in json.loads(run("plugins", "--json"))}
    assert f"{len(found)} plugins\n" in text
    assert "\n1 plugin\n" in f"\n{plugins_as_table([found['whole']])}"
    assert found["whole"]["status"] == "loaded"
    assert found["whole"]["wrappers"] == ["Shift"]
    assert found["broken"]["status"] == "failed"
    assert found["broken"]["version"] == "0.3"
    assert found["broken"]["error"] == "RuntimeError: no such thing"
    assert list(found["whole"]) == [
        "name",
        "distribution",
        "version",
        "value",
        "status",
        "error",
        "seconds",
        "wrappers",
    ]


def test_plugins_and_adapters_work_with_every_plugin_broken(site):
    site.install("broken", "import nothing_of_this_name")
    site.install("rubbish", "@hookimpl\ndef jno_lora_wrappers():\n    return 3")
    assert {r["status"] for r in json.loads(run("plugins", "--json"))} == {"failed"}
    assert json.loads(run("adapters", "--json")) == []
    assert "0 adapters" in run("adapters")


def test_adapters_say_what_they_are_for(site):
    site.install("whole", GOOD, version="1.2")
    (adapter,) = json.loads(run("adapters", "--json"))
    assert adapter == {
        "name": "Shift",
        "qualified_name": "whole:Shift",
        "distribution": "whole",
        "version": "1.2",
        "variant": "shift",
        "method": "shift",
        "family": None,
        "auto": False,
        "layers": ["Linear"],
        "formula": "out",
        "paper": "0000.00000",
    }
    for word in ("shift", "Shift", "SHIFT"):
        assert "Shift" in run("adapters", word)
    assert "near it: shift" in run("adapters", "shaft", code=2)


def test_adapters_are_listed_as_methods_by_family(site):
    turned = GOOD.replace('variant = "shift"', 'variant = "shift"\n    family = "turns"')
    assert turned != GOOD
    site.install("whole", turned)
    heading, method = [line for line in run("adapters").splitlines() if "  " in line][-2:]
    assert heading.strip() == "turns:"
    assert method.split() == ["shift", "out", "Linear", "(1)", "0000.00000"]


def test_doctor_is_content_with_a_whole_installation(site):
    site.install_zoo()
    text = run("doctor")
    assert "0 troubles found" in text
    assert "jno.lora imported from" in text


def test_doctor_reports_failures_with_tracebacks(site):
    site.install_zoo()
    site.install("broken", "def f():\n    raise RuntimeError('no such thing')\nf()")
    text = run("doctor", code=1)
    assert "in f" in text
    assert "RuntimeError: no such thing" in text
    assert "JNO_LORA_BLOCK=broken" in text


def test_doctor_writes_a_report_without_private_paths(site, monkeypatch):
    site.install_zoo()
    site.install("whole", GOOD, version="1.2")
    site.install("broken", "def f():\n    raise RuntimeError('no ```such``` thing')\nf()")
    monkeypatch.setenv("HOME", str(site.root))
    monkeypatch.setenv("JNO_LORA_BLOCK", str(site.root / "private"))
    text = run("doctor", "--report", code=1)
    first, *lines, last = text.splitlines()
    assert (first, last) == ("````text", "````")  # longer than the backticks of the error
    assert lines[0] == f"Python {platform.python_version()}"
    # The fake distributions hide an editable install, but not an installed wheel.
    hidden = "jno-lora not installed as a distribution"
    assert lines[1] in (hidden, f"jno-lora {jno.lora.__version__}")
    assert "whole 1.2, plugin 'main', loaded, 1 adapter: Shift" in lines
    assert "devices: 8 x cpu cpu" in lines
    assert "JNO_LORA_BLOCK='~/private'" in lines
    assert "RuntimeError: no ```such``` thing" in text and "PROBLEM: " in text
    for path in (str(site.root), sys.prefix, os.getcwd()):
        assert path not in text


def test_a_device_that_cannot_be_used_is_in_the_report(site, monkeypatch):
    def broken():
        raise RuntimeError("the driver is too old")

    site.install_zoo()
    monkeypatch.setattr(jax, "devices", broken)
    assert "devices: RuntimeError: the driver is too old" in run("doctor", "--report")


def test_doctor_misses_the_zoo(site):
    text = run("doctor", code=1)
    assert 'pip install "jno-lora[zoo]"' in text and "1 trouble found." in text


def test_doctor_says_who_blocked_the_zoo(site, monkeypatch):
    site.install_zoo()
    monkeypatch.setenv("JNO_LORA_BLOCK", "jno-lora-zoo")
    text = " ".join(run("doctor", code=1).split())
    assert "has no adapters to use: jno-lora-zoo is blocked" in text
    assert "pip install" not in text


def test_doctor_notices_slow_plugins(site):
    site.install_zoo()
    site.install("sleepy", "import time\ntime.sleep(1.1)\n" + GOOD)
    assert "sleepy 1.0" in run("doctor", code=1)


TELLS = """
@hookimpl
def jno_lora_doctor(facts, troubles):
    facts.append(("a library", "4.2"))
    troubles.append("the library is too old")
"""


def test_doctor_prints_what_plugins_tell(site):
    site.install_zoo()
    site.install("telling", TELLS)
    text = run("doctor", code=1)
    assert "a library" in text and "4.2" in text
    assert "TROUBLE: the library is too old" in text and "1 trouble found." in text
    report = run("doctor", "--report", code=1)
    assert "a library 4.2" in report.splitlines() and "PROBLEM: the library is too old" in report


def test_a_plugin_that_cannot_tell_is_a_trouble(site):
    site.install_zoo()
    site.install("silent", "@hookimpl\ndef jno_lora_doctor(facts):\n    raise KeyError('a tooth')")
    site.install("telling", TELLS)
    text = " ".join(run("doctor", code=1).split())
    assert "silent" in text and "KeyError('a tooth')" in text
    assert "the library is too old" in text and "2 troubles found." in text


@pytest.mark.parametrize("group", ["jno_lora", "jno.lora.plugins", "jno-lora", "Jno.Lora"])
def test_doctor_and_check_see_a_group_that_nearly_is_ours(group, site):
    site.install_zoo()
    site.install("acme-lora", GOOD, group=group, version="1.5")
    advice = (
        f"TROUBLE: acme-lora 1.5 has entry points in the group {group!r}, but plugins are found by "
        'the group "jno.lora". In its pyproject.toml, write [project.entry-points."jno.lora"]'
    )
    text = run("doctor", code=1)
    assert advice in text and "1 trouble found" in text
    text = run("check", "acme-lora", code=1)
    assert advice in text and "No installed plugin belongs to" in text


def test_doctor_and_check_see_a_plugin_without_an_entry_point(site):
    site.install_zoo()
    site.install("jno-lora-acme", GOOD, group="console_scripts")
    site.install("jno-lora-train", "", group="console_scripts")  # ours, which users import
    text = run("doctor", code=1)
    assert "TROUBLE: jno-lora-acme 1.0 is named like a plugin, but has no entry point" in text
    assert "1 trouble found" in text
    assert "jno-lora-acme 1.0 is named like a plugin" in run("check", "JNO_LoRA.acme", code=1)


def test_doctor_notes_a_distribution_that_uses_us_and_is_perhaps_a_program(site):
    site.install_zoo()
    site.install("acme", "", group="console_scripts", requires=("numpy", "jno-lora[zoo] >= 0.1"))
    site.install("bolt", "", group="console_scripts", requires=("jno-lora>=0.1; extra == 'lora'",))
    text = run("doctor")
    assert "NOTE: acme 1.0 uses jno-lora, and has no entry point" in text
    assert "bolt" not in text and "0 troubles found" in text
    # Who asks to check a distribution takes it for a plugin.
    assert "TROUBLE: acme 1.0 uses jno-lora, and has no entry" in run("check", "acme", code=1)


NEEDS = {
    "jno-lora>=9": "needs jno-lora>=9, but jno-lora {} is installed",
    "jno_lora[zoo] (>=0.1,<0.2)": "needs jno-lora>=0.1,<0.2, but jno-lora {} is installed",
    "jno-lora>=8; python_version >= '3.9'": "needs jno-lora>=8, but jno-lora {} is installed",
    "jno-lora-zoo~=1.1": "needs jno-lora-zoo~=1.1, but jno-lora-zoo 1.0 is installed",
}


@pytest.mark.parametrize("requirement", NEEDS)
def test_doctor_and_check_see_a_version_that_does_not_fit(requirement, site):
    site.install_zoo()
    site.install("acme-lora", "@hookimpl\ndef jno_lora_commands(): pass", requires=(requirement,))
    trouble = f"TROUBLE: acme-lora 1.0 {NEEDS[requirement].format(jno.lora.__version__)}"
    assert trouble in run("doctor", code=1)
    assert trouble in run("check", "acme-lora", code=1)


@pytest.mark.parametrize(
    "requirement",
    [
        f"jno-lora=={jno.lora.__version__}",
        "jno-lora>=0.1,!=0.1.7",
        "jno-lora-zoo==1.*",
        "jno-lora-zoo ~=1.0.0",
        "jno-lora",
        "jno-lora @ https://example.org/jno-lora.whl",
        "jno-lora>=9; python_version < '3'",
        "jno-lora>=9; python_version >= '3.9' and extra == 'lora'",
        "jno-lora-embedding>=9",  # pip says that it is missing
    ],
)
def test_doctor_is_content_with_a_version_that_fits(requirement, site):
    site.install_zoo()
    site.install("acme-lora", GOOD, requires=(requirement,))
    assert "0 troubles found" in run("doctor")


VERSIONS = ["0.2", "0.2.0", "1", "1.0.1", "1.2.3", "1.10", "2.0.0", "10.1"]
NUMBERS = ["0.2", "0.2.0", "1.0", "1.2", "1.2.3", "1.9", "1.10.0", "9.0"]
BOUNDS = [
    *(f"{relation}{n}" for relation in ("~=", "==", "!=", "<=", ">=", "<", ">") for n in NUMBERS),
    *("==1.*", "!=1.*", "==1.2.*", "==0.2.0.*", ">=0.2,<0.3", ">1.2, <10", ""),
]


def test_bounds_mean_what_they_mean_to_pip():
    specifiers = pytest.importorskip("packaging.specifiers")
    pairs = [(version, bounds) for version in VERSIONS for bounds in BOUNDS]
    expected = [specifiers.SpecifierSet(bounds).contains(version) for version, bounds in pairs]
    assert [is_within(*pair) for pair in pairs] == expected
    assert is_within("1.0rc1", ">=1") and is_within("unknown", "<9") and is_within("1", "===1")


def test_doctor_sees_names_that_allow_or_block_nothing(site, monkeypatch):
    site.install_zoo()
    site.plugin("acme-lora", '"Acme"', entry="acme")
    monkeypatch.setenv("JNO_LORA_BLOCK", "acme-lroa, ACME")
    monkeypatch.setenv("JNO_LORA_PLUGINS", "jno-lora-embedding,acme_lora,acme")
    text = run("doctor", code=1)
    assert "JNO_LORA_BLOCK names 'acme-lroa', but no installed plugin has this name" in text
    assert "The nearest names are: acme-lora" in text
    # A list of allowed names holds distributions, and ours need not be installed.
    assert "JNO_LORA_PLUGINS names 'acme', but" in text and "2 troubles found" in text


def test_doctor_makes_each_layer_once(site, monkeypatch):
    site.install_zoo()
    site.plugin("acme-lora", '"A", variant="a"', '"B", variant="b"')
    site.plugin("bolt-lora", '"C", variant="a"', '"D", variant="b"')
    keys = []

    def make(key):
        keys.append(key)
        return eqx.nn.Linear(2, 2, key=key)

    monkeypatch.setattr(installed, "standard_layers", lambda: {"Linear": (make, None)})
    assert run("doctor", code=1).count("Several plugins adapt Linear") == 2
    assert len(keys) == 1


def test_doctor_and_check_see_what_a_plugin_does_while_it_loads(site):
    # As in a program of one thread: a worker of pytest-xdist has several threads.
    site.monkeypatch.setattr(threading, "active_count", lambda: 1)
    site.install_zoo()
    loud = "print('a banner')\nimport jax\njax.config.update('jax_enable_x64', True)\n"
    site.install("loud-lora", loud + GOOD)
    site.plugin("quiet-lora", '"Quiet"')
    text = run("doctor", code=1)
    assert "The plugin loud-lora 1.0 " in text and "quiet-lora 1.0 (" not in text
    assert "which are set back: jax_enable_x64 = True." in text
    assert "prints while it loads" in text and "2 troubles found" in text
    text = run("check", "loud-lora", "--only", "output-dtype", code=1)
    assert "0 of 1 checks fail" in text and "jax_enable_x64 = True" in text


def test_output_for_programs_is_json_also_if_a_plugin_prints(site):
    site.install("loud-lora", "print('a banner')\n" + GOOD)
    result = CliRunner().invoke(cli, ["plugins", "--json"])
    assert json.loads(result.stdout)[0]["distribution"] == "loud-lora"
    assert result.stderr == "a banner\n"


def test_doctor_names_what_each_plugin_adds(site):
    site.install_zoo()
    commands = """
        @hookimpl
        def jno_lora_commands(group):
            import click
            group.add_command(click.Command("greet"))
            group.add_command(click.Command("doctor"))
    """
    needy = """
        class Needy(Shift):
            needs = ("input_mean",)
            variant = "needy"

            @classmethod
            def matrix(cls, layer):
                return layer.weight

            def __init__(self, base, rank, alpha, *, key, statistics):
                pass
    """
    code = GOOD.replace("\n@hookimpl", f"\n{dedent(needy)}\n@hookimpl")
    code = code.replace("[Shift]", "[Shift, Needy]")
    site.install("acme-lora", code + dedent(commands), version="2.0")
    many = [f'"A{number}", variant="kind-{number % 3}"' for number in range(13)]
    site.plugin("bolt-lora", *many)
    lines = [re.split("  +", line.strip()) for line in run("doctor", code=1).splitlines()]
    names = [line[0] for line in lines]
    acme, bolt = names.index("acme-lora 2.0"), names.index("bolt-lora 1.0")
    assert lines[acme + 1 : bolt] == [
        ["adapters", "Shift, Needy"],
        ["hooks", "jno_lora_commands, jno_lora_wrappers"],
        ["commands", "greet"],  # the name `doctor` is taken
        ["statistics", "input_mean"],
    ]
    assert lines[bolt + 1] == ["13 adapters", "kind-0, kind-1, kind-2"]


def test_new_writes_nine_files_and_never_overwrites(tmp_path):
    run("new", "my-adapter", "--output", str(tmp_path))
    folder = tmp_path / "jno-lora-my-adapter"
    files = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    assert files == [
        ".github/workflows/test.yml",
        ".gitignore",
        "LICENSE",
        "README.md",
        "pyproject.toml",
        "src/jno_lora_my_adapter/__init__.py",
        "src/jno_lora_my_adapter/plugin.py",
        "tests/conftest.py",
        "tests/test_conformance.py",
    ]
    steps = (folder / ".github" / "workflows" / "test.yml").read_text()
    assert "python-version: ${{ matrix.python }}\n" in steps
    assert all(f"- run: {command}" in steps for command in ("pip install", "pytest", "jno-lora"))
    assert "exists already" in run("new", "my-adapter", "--output", str(tmp_path), code=1)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (None, "--xla_force_host_platform_device_count=8"),
        ("--xla_a", "--xla_a --xla_force_host_platform_device_count=8"),
        (
            "--xla_force_host_platform_device_count=2",
            "--xla_force_host_platform_device_count=2",
        ),
    ],
)
def test_the_tests_that_new_writes_have_eight_devices(flags, expected, tmp_path, monkeypatch):
    run("new", "my-adapter", "--output", str(tmp_path))
    monkeypatch.delenv("XLA_FLAGS")
    if flags is not None:
        monkeypatch.setenv("XLA_FLAGS", flags)
    (conftest,) = tmp_path.rglob("conftest.py")
    exec(conftest.read_text(), {})
    assert os.environ["XLA_FLAGS"] == expected


@pytest.mark.parametrize("name", ["", "  ", "-", "a/b", "ünï!"])
def test_new_refuses_names_that_make_no_package(name, tmp_path):
    assert "is not a package name" in run("new", "--output", str(tmp_path), "--", name, code=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["none", "TRUE", "false"])
def test_new_refuses_names_of_classes_that_python_has_no_room_for(name, tmp_path):
    text = run("new", name, "--output", str(tmp_path), code=1)
    assert f"a class named {name.capitalize()}, which is a word of Python" in text
    assert f"such as my-{name.lower()}" in text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["lora", "LoRA-FA", "lora_in_norm", "IA3", "DoRALinear", "auto", "all", "all-linear"]
)
def test_new_refuses_names_of_the_zoo_which_would_be_ambiguous(name, site, tmp_path):
    site.plugin(
        "jno-lora-zoo",
        '"DoRALinear", variant="dora"',
        '"IA3Linear", variant="ia3"',
        '"LoRAFALinear", variant="lora-fa"',
        '"LoRAInNorm", variant="lora-in-norm"',
        '"LoRALinear", variant="lora"',
    )
    output = tmp_path / "written"
    text = run("new", name, "--output", str(output), code=1)
    assert "ambiguous" in text and "such as my-" in text
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


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("kit-gain", lambda key: eqx.nn.Linear(6, 4, key=key)),
        ("kit-embedding", lambda key: eqx.nn.Embedding(6, 4, key=key)),
    ],
)
def test_what_new_writes_passes_the_kit_and_adapts_stacked_layers(
    name, make, tmp_path, monkeypatch, getkey
):
    module, tests = written(tmp_path, monkeypatch, name)
    first, second, third = tests.CASES
    (adapter,) = {case.wrapper for case in tests.CASES}
    assert adapter is vars(module)[adapter.__name__]
    for result in run_checks(first):
        assert result.error is None
        # An index has no derivatives.
        is_lookup = result.not_applicable == "no input of the layer is a floating array"
        extension = (result.not_applicable or "").startswith("the adapter ")
        symmetries = result.not_applicable == "the case names no `symmetries`"
        assert result.not_applicable is None or is_lookup or extension or symmetries
    for case in (second, third):
        results = run_checks(case, _OF_SHAPES)
        assert [(r.error, r.not_applicable) for r in results] == len(_OF_SHAPES) * [(None, None)]
    shapes = [sorted(case.make_base().weight.shape) for case in tests.CASES]
    assert shapes == [[4, 6], [3, 5], [4, 4]]
    assert [(case.rank, case.alpha) for case in tests.CASES] == [(2, 4.0), (2, 4.0), (3, 3.0)]
    assert name != "kit-gain" or second.make_base().bias is None
    stack = eqx.filter_vmap(make)(jax.random.split(getkey(), 3))
    adapted = apply_lora([stack], 2, key=getkey(), wrappers=adapter)
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


@pytest.mark.parametrize(("name", "layer"), [("tint", "Linear"), ("embedding-tint", "Embedding")])
def test_new_chooses_the_layer_by_the_name(name, layer, tmp_path):
    run("new", name, "--output", str(tmp_path))
    (code,) = tmp_path.rglob("src/*/__init__.py")
    assert f"base: eqx.nn.{layer}" in code.read_text()


def test_new_refuses_the_name_of_an_installed_adapter_but_not_of_itself(site, tmp_path):
    site.install("jno-lora-tint", GOOD.replace("Shift", "Tint").replace("shift", "tint"))
    text = run("new", "ti-nt", "--output", str(tmp_path), code=1)
    assert "'ti-nt' is a name of jno-lora-tint:Tint" in text
    assert not list(tmp_path.rglob("pyproject.toml"))
    run("new", "tint", "--output", str(tmp_path))
    assert (tmp_path / "jno-lora-tint" / "pyproject.toml").exists()


def test_an_output_that_cannot_be_made_is_a_message_of_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    text = run("new", "tint", "--output", str(tmp_path / "file" / "below"), code=1)
    assert text.startswith("Error: ") and "Not a directory" in text
    assert str(tmp_path / "file" / "below") in text and text.count("\n") == 1


def test_a_reader_that_has_enough_is_no_error(monkeypatch):
    def print_into_nothing(**_):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(cli.commands["plugins"], "callback", print_into_nothing)
    assert run("plugins", code=1) == ""


def test_check_runs_the_kit_on_a_class(site, monkeypatch):
    module = site.install("whole", GOOD)
    text = run("check", f"{module}:Shift")
    # It claims no stacks, has no optional member, and no count and no law are known.
    optional = "subclass, matrix, low-rank-update, low-rank-scale"
    extensions = "poor-statistics, calibration, shared-arrays, penalty, rank-gate"
    not_applicable = (
        "parameter-count, factor-sides, partition-specs, symmetries, law, "
        f"{optional}, {extensions}, stacked-layers"
    )
    checks = len(CHECKS) - len(not_applicable.split())
    assert re.match(r"0 of \d+ checks fail\n", text)
    (row,) = (line.split(maxsplit=4) for line in text.splitlines() if "Shift-Linear  " in line)
    assert row == ["Shift-Linear", f"{checks}/{checks}", "-", "-", not_applicable]


def test_check_prints_advice_and_fails_for_it_only_on_request(site):
    halved = GOOD.replace("if base.weight.dtype == jnp.float64 else jnp.float32", "")
    halved = halved.replace("dtype = jnp.float64", "dtype = base.weight.dtype")
    module = site.install("halved", halved)
    text = run("check", f"{module}:Shift")
    assert re.match(r"0 of \d+ checks fail, 1 advise\n", text)
    (row,) = (line.split() for line in text.splitlines() if "Shift-Linear  " in line)
    assert row[2:4] == ["-", "adapter-dtype"]
    assert "\nAdvice: [adapter-dtype] Shift-Linear: With bfloat16" in text
    assert "Advice: [adapter-dtype]" in run("check", f"{module}:Shift", "--strict", code=1)


def test_check_says_which_adapters_it_has_no_layer_for(site):
    hidden = (
        GOOD.replace("[Shift]", "[Shift, Hidden]")
        + """
class Hidden(Shift):
    @classmethod
    def applies_to(cls, leaf):
        return False
"""
    )
    site.install("whole", hidden)
    text = run("check", "whole")
    assert "Shift-Linear" in text
    assert "they claim no layer that this command knows: Hidden." in text


def test_adapters_lists_a_class_that_cannot_say_what_it_is_for(site):
    careless = GOOD.replace("exact = type(leaf) is eqx.nn.Linear and", "exact = leaf.weight and")
    site.install("careless", careless)
    (adapter,) = json.loads(run("adapters", "--json"))
    assert adapter["layers"] == []
    (line,) = (line for line in run("adapters").splitlines() if " shift " in line)
    assert "(others)" in line


def test_check_runs_the_kit_on_a_distribution_and_fails_with_advice(site):
    merged_wrongly = GOOD.replace(
        "return self.merge()(x)", "return self.merge()(x) + 1 * self.delta[:, 0].astype(x.dtype)"
    )
    site.install("wrong", merged_wrongly)
    text = run("check", "wrong", code=1)
    assert "merge-equals-call" in text and "\n[merge-equals-call] " in text
    assert "What to do" in text


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("nowhere_at_all:Class", "cannot be imported"),
        ("json:loads", "must be a subclass"),
        ("not-installed", "No installed plugin"),
    ],
)
def test_check_says_what_it_cannot_find(what, message, site):
    assert message in run("check", what, code=1)


def test_it_is_a_module_too():
    done = subprocess.run(
        [sys.executable, "-m", "jno.lora", "--version"], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert done.stdout == f"jno-lora, version {jno.lora.__version__}\n"
