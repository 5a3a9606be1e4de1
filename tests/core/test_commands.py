"""The command line's plugins, adapters and doctor, with plugins whole and broken."""

import json
import os
import platform
import re
import sys
from textwrap import dedent

import jax

import jno.lora
from jno.lora import refresh
from jno.lora._commands.installed import plugins_as_table

from .asking import run

GOOD = """
from jno.lora import About

Shift = adapter("Shift", variant="shift")
Shift.about = About(paper="0000.00000", formula="out")

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


def test_plugins_and_adapters_work_with_every_plugin_broken(site):
    site.install("broken", "import nothing_of_this_name")
    site.install("rubbish", "@hookimpl\ndef jno_lora_wrappers():\n    return 3")
    assert {r["status"] for r in json.loads(run("plugins", "--json"))} == {"failed"}
    assert json.loads(run("adapters", "--json")) == []
    assert "0 adapters" in run("adapters")


def test_adapters_say_what_they_are_for_and_are_listed_as_methods_by_family(site):
    site.install("whole", GOOD.replace("About(", 'About("turns", '), version="1.2")
    (adapter,) = json.loads(run("adapters", "--json"))
    assert adapter == {
        "name": "Shift",
        "qualified_name": "whole:Shift",
        "distribution": "whole",
        "version": "1.2",
        "variant": "shift",
        "method": "shift",
        "family": "turns",
        "auto": False,
        "layers": ["Linear"],
        "formula": "out",
        "paper": "0000.00000",
    }
    for word in ("shift", "SHIFT", "Shift"):
        assert "Shift" in run("adapters", word)
    assert "nearest" in run("adapters", "shaft", code=1)
    heading, method = [line for line in run("adapters").splitlines() if "  " in line][-2:]
    assert heading.strip() == "turns:"
    assert method.split() == ["shift", "out", "Linear", "(1)", "0000.00000"]


def test_adapters_lists_a_class_that_cannot_say_what_it_is_for(site):
    careless = "Shift.applies_to = classmethod(lambda cls, leaf: 1 / 0)\n\n@hookimpl"
    site.install("careless", GOOD.replace("@hookimpl", careless))
    (adapter,) = json.loads(run("adapters", "--json"))
    assert adapter["layers"] == []
    (line,) = (line for line in run("adapters").splitlines() if " shift " in line)
    assert "(others)" in line


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


def test_doctor_misses_the_zoo_or_says_who_blocked_it_and_that_a_device_fails(site, monkeypatch):
    def broken():
        raise RuntimeError("the driver is too old")

    text = run("doctor", code=1)
    assert 'pip install -U "jno-lora[zoo]"' in text and "1 trouble found." in text
    site.install_zoo()
    monkeypatch.setenv("JNO_LORA_BLOCK", "jno-lora-zoo")
    monkeypatch.setattr(jax, "devices", broken)
    refresh()
    text = run("doctor", code=1)
    assert facts_in(text)["devices"] == "RuntimeError: the driver is too old"
    text = " ".join(text.split())
    assert "has no adapters to use" in text and "jno-lora-zoo is blocked" in text
    assert "pip install" not in text


def test_doctor_prints_what_plugins_tell_and_that_one_cannot(site):
    site.install_zoo()
    hook = "@hookimpl\ndef jno_lora_doctor(facts, troubles):\n    "
    site.install("silent", f"{hook}raise KeyError('a tooth')")
    site.install("telling", f"{hook}facts.append(('a library', '4.2')); troubles.append('too old')")
    text = run("doctor", code=1)
    assert facts_in(text)["a library"] == "4.2" and "TROUBLE: too old" in text
    assert "silent" in text and "KeyError('a tooth')" in text and "2 troubles found." in text


def test_doctor_sees_plugins_without_an_entry_point_in_our_group(site):
    site.install_zoo()
    hidden = {"acme-lora": "jno.lora.plugins", "bolt": "Jno-Lora", "jno-lora-x": "console_scripts"}
    for distribution, group in hidden.items():
        site.install(distribution, GOOD, group=group, version="1.5")
    site.install("jno-lora-train", "", group="console_scripts")  # ours, which users import
    text = run("doctor", code=1)
    for distribution, group in hidden.items():
        assert f"TROUBLE: {distribution} 1.5 looks like a plugin" in text and group in text
    assert '[project.entry-points."jno.lora"]' in text and "3 troubles found" in text


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
    more = """
        class Needy(Shift):
            needs = ("input_mean",)
            variant = "needy"

            @classmethod
            def matrix(cls, layer):
                return layer.weight

            def __init__(self, base, rank, alpha, *, key, statistics):
                pass

        @hookimpl
        def jno_lora_commands(group):
            import click
            group.add_command(click.Command("greet"))
            group.add_command(click.Command("doctor"))
    """
    site.install("acme-lora", GOOD.replace("[Shift]", "[Shift, Needy]") + dedent(more))
    lines = [re.split("  +", line.strip()) for line in run("doctor", code=1).splitlines()]
    start = [line[0] for line in lines].index("acme-lora 1.0") + 1
    assert lines[start : start + 4] == [
        ["2 adapters", "needy, shift"],
        ["hooks", "jno_lora_commands, jno_lora_wrappers"],
        ["commands", "greet"],  # the name `doctor` is taken
        ["statistics", "input_mean"],
    ]
