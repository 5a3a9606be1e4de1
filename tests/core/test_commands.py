"""The command line's plugins, adapters and doctor, with plugins whole and broken."""

import errno
import json
import os
import platform
import re
import subprocess
import sys
from textwrap import dedent

import jax
import pytest

import jno.lora
from jno.lora._commands._cli import cli
from jno.lora._commands.installed import plugins_as_table

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


def facts_in(text):
    """The facts that `doctor` prints, by name."""
    pairs = [re.split("  +", line.strip(), maxsplit=1) for line in text.splitlines()]
    return dict(pair for pair in pairs if len(pair) == 2)


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
    first, *_, last = text.splitlines()
    assert (first, last) == ("````````text", "````````")  # longer than the backticks of the error
    facts = facts_in(text)
    assert facts["Python"] == platform.python_version()
    # The fake distributions hide an editable install, but not an installed wheel.
    hidden = "not installed as a distribution"
    assert facts["jno-lora"] in (hidden, jno.lora.__version__)
    assert facts["whole 1.2"].startswith("loaded") and "'main'" in facts["whole 1.2"]
    assert facts["adapters"] == "Shift"
    assert facts["devices"] == "8 x cpu cpu"
    assert facts["JNO_LORA_BLOCK"] == "'~/private'"
    assert "RuntimeError: no ```such``` thing" in text and "TROUBLE: " in text
    for path in (str(site.root), sys.prefix, os.getcwd()):
        assert path not in text


def test_a_device_that_cannot_be_used_is_in_the_report(site, monkeypatch):
    def broken():
        raise RuntimeError("the driver is too old")

    site.install_zoo()
    monkeypatch.setattr(jax, "devices", broken)
    facts = facts_in(run("doctor", "--report"))
    assert facts["devices"] == "RuntimeError: the driver is too old"


def test_doctor_misses_the_zoo(site):
    text = run("doctor", code=1)
    assert 'pip install -U "jno-lora[zoo]"' in text and "1 trouble found." in text


def test_doctor_says_who_blocked_the_zoo(site, monkeypatch):
    site.install_zoo()
    monkeypatch.setenv("JNO_LORA_BLOCK", "jno-lora-zoo")
    text = " ".join(run("doctor", code=1).split())
    assert "has no adapters to use" in text and "jno-lora-zoo is blocked" in text
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
    assert facts_in(report)["a library"] == "4.2" and "TROUBLE: the library is too old" in report


def test_a_plugin_that_cannot_tell_is_a_trouble(site):
    site.install_zoo()
    site.install("silent", "@hookimpl\ndef jno_lora_doctor(facts):\n    raise KeyError('a tooth')")
    site.install("telling", TELLS)
    text = " ".join(run("doctor", code=1).split())
    assert "silent" in text and "KeyError('a tooth')" in text
    assert "the library is too old" in text and "2 troubles found." in text


@pytest.mark.parametrize("group", ["jno_lora", "jno.lora.plugins", "jno-lora", "Jno.Lora"])
def test_doctor_sees_a_group_that_nearly_is_ours(group, site):
    site.install_zoo()
    site.install("acme-lora", GOOD, group=group, version="1.5")
    advice = (
        f"TROUBLE: acme-lora 1.5 has entry points in the group {group!r}, but plugins are found by "
        'the group "jno.lora". In its pyproject.toml, write [project.entry-points."jno.lora"]'
    )
    text = run("doctor", code=1)
    assert advice in text and "1 trouble found" in text


def test_doctor_sees_a_plugin_without_an_entry_point(site):
    site.install_zoo()
    site.install("jno-lora-acme", GOOD, group="console_scripts")
    site.install("jno-lora-train", "", group="console_scripts")  # ours, which users import
    text = run("doctor", code=1)
    assert "TROUBLE: jno-lora-acme 1.0 is named like a plugin, but has no entry point" in text
    assert "1 trouble found" in text


NEEDS = {
    "jno-lora>=9": "needs jno-lora>=9, but jno-lora {} is installed",
    "jno_lora[zoo] (>=0.1,<0.2)": "needs jno-lora<0.2,>=0.1, but jno-lora {} is installed",
    "jno-lora>=8; python_version >= '3.9'": "needs jno-lora>=8, but jno-lora {} is installed",
    "jno-lora-zoo~=1.1": "needs jno-lora-zoo~=1.1, but jno-lora-zoo 1.0 is installed",
}


@pytest.mark.parametrize("requirement", NEEDS)
def test_doctor_sees_a_version_that_does_not_fit(requirement, site):
    site.install_zoo()
    site.install("acme-lora", "@hookimpl\ndef jno_lora_commands(): pass", requires=(requirement,))
    trouble = f"TROUBLE: acme-lora 1.0 {NEEDS[requirement].format(jno.lora.__version__)}"
    assert trouble in run("doctor", code=1)


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
        "jno-lora-attention>=9",  # pip says that it is missing
    ],
)
def test_doctor_is_content_with_a_version_that_fits(requirement, site):
    site.install_zoo()
    site.install("acme-lora", GOOD, requires=(requirement,))
    assert "0 troubles found" in run("doctor")


def test_doctor_sees_names_that_allow_or_block_nothing(site, monkeypatch):
    site.install_zoo()
    site.plugin("acme-lora", '"Acme"', entry="acme")
    monkeypatch.setenv("JNO_LORA_BLOCK", "acme-lroa, ACME")
    monkeypatch.setenv("JNO_LORA_PLUGINS", "jno-lora-attention,acme_lora,acme")
    text = run("doctor", code=1)
    assert "JNO_LORA_BLOCK names 'acme-lroa', but no installed plugin has this name" in text
    assert "The nearest names are: acme-lora" in text
    # A list of allowed names holds distributions, and ours need not be installed.
    assert "JNO_LORA_PLUGINS names 'acme', but" in text and "2 troubles found" in text


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


def test_a_closed_pipe_is_not_an_error(monkeypatch):
    def print_into_nothing(**_):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(cli.commands["plugins"], "callback", print_into_nothing)
    assert run("plugins", code=1) == ""


def test_adapters_lists_a_class_that_cannot_say_what_it_is_for(site):
    careless = GOOD.replace("exact = type(leaf) is eqx.nn.Linear and", "exact = leaf.weight and")
    site.install("careless", careless)
    (adapter,) = json.loads(run("adapters", "--json"))
    assert adapter["layers"] == []
    (line,) = (line for line in run("adapters").splitlines() if " shift " in line)
    assert "(others)" in line


def test_it_is_a_module_too():
    done = subprocess.run(
        [sys.executable, "-m", "jno.lora", "--version"], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert done.stdout == f"jno-lora, version {jno.lora.__version__}\n"
