"""The command line's plugins, adapters and doctor, with plugins whole and broken."""

import errno
import json
import os
import platform
import re
import sys
from textwrap import dedent

import jax
import pytest

import jno.lora
from jno.lora import refresh
from jno.lora._commands._cli import cli
from jno.lora._commands.installed import plugins_as_table

from .asking import run

GOOD = """
import jax.numpy as jnp

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
        self.base, self.rank, self.alpha = base, rank, alpha
        dtype = jnp.float64 if base.weight.dtype == jnp.float64 else jnp.float32
        self.delta = jnp.zeros((base.weight.shape[0], 1), dtype)

    def __call__(self, x):
        return self.merge()(x)

    def merge(self):
        delta = jnp.broadcast_to(self.delta, self.base.weight.shape)
        weight = self.base.weight.astype(self.delta.dtype) + delta
        return eqx.tree_at(lambda l: l.weight, self.base, weight.astype(self.base.weight.dtype))

@hookimpl
def jno_lora_wrappers():
    return [Shift]
"""


def test_plugins_lists_whole_and_broken_ones(site):
    site.install("whole", GOOD, version="1.2")
    site.install("broken", "raise RuntimeError('no such thing')", version="0.3")
    text = run("plugins")
    assert "failed: RuntimeError: no such thing" in text
    found = {record["distribution"]: record for record in json.loads(run("plugins", "--json"))}
    assert f"{len(found)} plugins\n" in text
    assert "\n1 plugin\n" in f"\n{plugins_as_table([found['whole']])}"
    whole = found["whole"]
    assert [*whole] == [
        *("name", "distribution", "version", "value", "status", "error", "seconds", "wrappers"),
    ]
    assert (whole["version"], whole["status"], whole["wrappers"]) == ("1.2", "loaded", ["Shift"])
    broken = found["broken"]
    assert (broken["status"], broken["error"]) == ("failed", "RuntimeError: no such thing")


def test_plugins_are_listed_with_every_plugin_broken(site):
    site.install("broken", "import nothing_of_this_name")
    site.install("rubbish", "@hookimpl\ndef jno_lora_wrappers():\n    return 3")
    assert {r["status"] for r in json.loads(run("plugins", "--json"))} == {"failed"}


# --- doctor


def facts_in(text):
    """The facts that `doctor` prints, by name."""
    pairs = [re.split("  +", line.strip(), maxsplit=1) for line in text.splitlines()]
    return dict(pair for pair in pairs if len(pair) == 2)


def test_doctor_writes_a_report_with_tracebacks_and_without_private_paths(site, monkeypatch):
    site.install_zoo()
    assert "0 troubles found" in run("doctor")
    site.install("broken", "def f():\n    raise RuntimeError('no ```such``` thing')\nf()")
    monkeypatch.setenv("HOME", str(site.root))
    monkeypatch.setenv("JNO_LORA_BLOCK", str(site.root / "private"))
    refresh()
    text = run("doctor", "--report", code=1)
    first, *_, last = text.splitlines()
    assert (first, last) == ("````````text", "````````")  # longer than the backticks of the error
    facts = facts_in(text)
    assert facts["Python"] == platform.python_version()
    assert facts["jno-lora"] == jno.lora.__version__
    assert facts["jno-lora-zoo 1.0"].startswith("loaded") and "'main'" in facts["jno-lora-zoo 1.0"]
    assert facts["3 adapters"] == "dora, lora"
    assert facts["devices"] == "8 x cpu cpu"
    assert facts["JNO_LORA_BLOCK"] == "'~/private'"
    assert "in f" in text and "RuntimeError: no ```such``` thing" in text
    assert "TROUBLE: " in text and "JNO_LORA_BLOCK=broken" in text
    assert "jno.lora imported from" in text
    for path in (str(site.root), sys.prefix, os.getcwd()):
        assert path not in text


def test_a_device_that_cannot_be_used_is_in_the_report(site, monkeypatch):
    def broken():
        raise RuntimeError("the driver is too old")

    site.install_zoo()
    monkeypatch.setattr(jax, "devices", broken)
    assert facts_in(run("doctor"))["devices"] == "RuntimeError: the driver is too old"


def test_doctor_misses_the_zoo_or_says_who_blocked_it(site, monkeypatch):
    text = run("doctor", code=1)
    assert 'pip install -U "jno-lora[zoo]"' in text and "1 trouble found." in text
    site.install_zoo()
    monkeypatch.setenv("JNO_LORA_BLOCK", "jno-lora-zoo")
    refresh()
    text = " ".join(run("doctor", code=1).split())
    assert "has no adapters to use" in text and "jno-lora-zoo is blocked" in text
    assert "pip install" not in text


TELLS = """
@hookimpl
def jno_lora_doctor(facts, troubles):
    facts.append(("a library", "4.2"))
    troubles.append("the library is too old")
"""


def test_doctor_prints_what_plugins_tell_and_that_one_cannot(site):
    site.install_zoo()
    site.install("silent", "@hookimpl\ndef jno_lora_doctor(facts):\n    raise KeyError('a tooth')")
    site.install("telling", TELLS)
    text = run("doctor", code=1)
    assert facts_in(text)["a library"] == "4.2" and "TROUBLE: the library is too old" in text
    assert "silent" in text and "KeyError('a tooth')" in text and "2 troubles found." in text


@pytest.mark.parametrize(
    ("distribution", "group"),
    [
        *(("acme-lora", group) for group in ("jno_lora", "jno.lora.plugins", "Jno-Lora")),
        ("jno-lora-acme", "console_scripts"),
    ],
)
def test_doctor_sees_a_plugin_without_an_entry_point_in_our_group(distribution, group, site):
    site.install_zoo()
    site.install(distribution, GOOD, group=group, version="1.5")
    site.install("jno-lora-train", "", group="console_scripts")  # ours, which users import
    text = run("doctor", code=1)
    assert f"TROUBLE: {distribution} 1.5 looks like a plugin" in text and group in text
    assert '[project.entry-points."jno.lora"]' in text and "1 trouble found" in text


NEEDS = {
    "jno-lora>=9": "needs jno-lora>=9, but jno-lora {} is installed",
    "jno_lora[zoo] (>=0.1,<0.2)": "needs jno-lora<0.2,>=0.1, but jno-lora {} is installed",
    "jno-lora>=8; python_version >= '3.9'": "needs jno-lora>=8, but jno-lora {} is installed",
    "jno-lora-zoo~=1.1": "needs jno-lora-zoo~=1.1, but jno-lora-zoo 1.0 is installed",
}
FITS = (
    f"jno-lora=={jno.lora.__version__}",
    "jno-lora>=0.1,!=0.1.7",
    "jno-lora-zoo==1.*",
    "jno-lora @ https://example.org/jno-lora.whl",
    "jno-lora>=9; python_version < '3'",
    "jno-lora>=9; python_version >= '3.9' and extra == 'lora'",
    "jno-lora-attention>=9",  # pip says that it is missing
)


def test_doctor_sees_the_versions_that_do_not_fit_and_no_others(site):
    site.install_zoo()
    for number, requirement in enumerate(NEEDS):
        hook = "@hookimpl\ndef jno_lora_commands(): pass"
        site.install(f"acme{number}-lora", hook, requires=(requirement, *FITS))
    text = run("doctor", code=1)
    for number, trouble in enumerate(NEEDS.values()):
        assert f"TROUBLE: acme{number}-lora 1.0 {trouble.format(jno.lora.__version__)}" in text
    assert f"{len(NEEDS)} troubles found" in text


def test_doctor_sees_names_that_allow_or_block_nothing(site, monkeypatch):
    site.install_zoo()
    site.plugin("acme-lora", '"Acme"', entry="acme")
    monkeypatch.setenv("JNO_LORA_BLOCK", "acme-lroa, ACME")
    # Ours need not be installed.
    monkeypatch.setenv("JNO_LORA_PLUGINS", "jno-lora-attention,acme_lora")
    text = run("doctor", code=1)
    assert "JNO_LORA_BLOCK names 'acme-lroa'" in text and "Near it: acme-lora" in text
    assert "1 trouble found" in text


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
    lines = [re.split("  +", line.strip()) for line in run("doctor", code=1).splitlines()]
    start = [line[0] for line in lines].index("acme-lora 2.0") + 1
    assert lines[start : start + 4] == [
        ["2 adapters", "needy, shift"],
        ["hooks", "jno_lora_commands, jno_lora_wrappers"],
        ["commands", "greet"],  # the name `doctor` is taken
        ["statistics", "input_mean"],
    ]


def test_a_closed_pipe_is_not_an_error(monkeypatch):
    def print_into_nothing(**_):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(cli.commands["plugins"], "callback", print_into_nothing)
    assert run("plugins", code=1) == ""
