"""The command line's plugins, adapters and doctor, with plugins whole and broken; and inspect."""

import json
import os
import platform
import re
import sys
from textwrap import dedent

import equinox as eqx
import jax
import jax.numpy as jnp

import jno.lora
from jno.lora import apply_lora, refresh, save_adapters

from .asking import run
from .toys import ToyLinear

GOOD = """
import jax.numpy as jnp

class Shift(LoRAWrapper):
    adapter_fields = ("delta",)
    variant = "shift"
    base: eqx.nn.Linear
    delta: object
    rank: int = eqx.field(static=True)

    @classmethod
    def applies_to(cls, leaf):
        exact = type(leaf) is eqx.nn.Linear and eqx.is_inexact_array(leaf.weight)
        return exact and leaf.weight.ndim == 2

    def __init__(self, base, rank, *, key):
        self.base, self.rank = base, rank
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
    assert "failed: RuntimeError: no such thing" in text and "2 plugins\n" in text
    found = {record["distribution"]: record for record in json.loads(run("plugins", "--json"))}
    whole = found["whole"]
    assert [*whole] == [
        *("name", "distribution", "version", "value", "status", "error", "seconds", "wrappers"),
    ]
    assert (whole["version"], whole["status"], whole["wrappers"]) == ("1.2", "loaded", ["Shift"])
    broken = found["broken"]
    assert (broken["status"], broken["error"]) == ("failed", "RuntimeError: no such thing")


def test_plugins_lists_distributions_of_this_project_that_users_import(site):
    site.install("jno-lora-bank", "", version="1.5", group="another.group")
    (bank,) = json.loads(run("plugins", "--json"))
    assert (bank["distribution"], bank["version"], bank["status"]) == (
        *("jno-lora-bank", "1.5", "to import"),
    )


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


def test_doctor_prints_what_plugins_add_and_tell_and_that_one_cannot(site):
    site.install_zoo()
    hook = "@hookimpl\ndef jno_lora_doctor(facts, troubles):\n    "
    site.install("silent", f"{hook}raise KeyError('a tooth')")
    site.install("telling", f"{hook}facts.append(('a library', '4.2')); troubles.append('too old')")
    more = """
        class Needy(Shift, MatrixAdapter):
            needs = ("input_mean",)
            variant = "needy"
            matrix = classmethod(lambda cls, layer: layer.weight)

            def __init__(self, base, rank, *, key, statistics):
                pass

        @hookimpl
        def jno_lora_commands(group):
            import click
            group.add_command(click.Command("greet"))
            group.add_command(click.Command("doctor"))  # this name is taken
    """
    site.install("acme-lora", GOOD.replace("[Shift]", "[Shift, Needy]") + dedent(more))
    text = run("doctor", code=1)
    assert facts_in(text)["a library"] == "4.2" and "TROUBLE: too old" in text
    assert "silent" in text and "KeyError('a tooth')" in text
    lines = [re.split("  +", line.strip()) for line in text.splitlines()]
    start = [line[0] for line in lines].index("acme-lora 1.0") + 1
    assert lines[start : start + 4] == [
        ["2 adapters", "needy, shift"],
        ["hooks", "jno_lora_commands, jno_lora_wrappers"],
        ["commands", "greet"],
        ["statistics", "input_mean"],
    ]


NEEDS = {
    "jno-lora>=9": "needs jno-lora>=9, but jno-lora {} is installed",
    "jno_lora[zoo] (>=0.1,<0.2)": "needs jno-lora<0.2,>=0.1, but jno-lora {} is installed",
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


def test_doctor_sees_hidden_plugins_versions_that_do_not_fit_and_names_of_nobody(site, monkeypatch):
    site.install_zoo()
    site.plugin("acme-lora", '"Acme"', entry="acme")
    hidden = {"hidden": "jno.lora.plugins", "bolt": "Jno-Lora", "jno-lora-x": "console_scripts"}
    for distribution, group in hidden.items():
        site.install(distribution, GOOD, group=group, version="1.5")
    site.install("jno-lora-train", "", group="console_scripts")  # ours, which users import
    for number, requirement in enumerate(NEEDS):
        hook = "@hookimpl\ndef jno_lora_commands(): pass"
        site.install(f"needy{number}", hook, requires=(requirement, *FITS))
    # Ours need not be installed.
    monkeypatch.setenv("JNO_LORA_BLOCK", "acme-lroa, ACME, jno-lora-attention")
    text = run("doctor", code=1)
    for distribution, group in hidden.items():
        assert f"TROUBLE: {distribution} 1.5 looks like a plugin" in text and group in text
    assert '[project.entry-points."jno.lora"]' in text
    for number, trouble in enumerate(NEEDS.values()):
        assert f"TROUBLE: needy{number} 1.0 {trouble.format(jno.lora.__version__)}" in text
    assert "JNO_LORA_BLOCK names 'acme-lroa'" in text and "Near it: acme-lora" in text
    assert f"{len(hidden) + len(NEEDS) + 1} troubles found" in text


# --- inspect


def test_inspect_shows_a_file_as_a_table_and_as_json_with_stable_keys(
    tmp_path, getkey, registry, monkeypatch
):
    layers = {"[red]a": eqx.nn.Linear(3, 2, key=getkey()), "b": eqx.nn.Linear(2, 2, key=getkey())}
    model = apply_lora(layers, 1, 2.0, key=getkey(), wrapper=ToyLinear)
    model["b"] = eqx.tree_at(lambda w: w.lora_B, model["b"], jnp.asarray([[jnp.nan], [1.0]]))
    saved = str(tmp_path / "file")
    save_adapters(model, saved)
    text = run("inspect", saved)
    (row,) = [line.split() for line in text.splitlines() if "[red]a" in line]
    form, (values, *_) = row[:-1], json.loads(run("inspect", saved, "--json"))["adapters"]
    assert form == ["[red]a", "Linear", "ToyLinear", "(no", "plugin)", "1", "2", "2", "5", "20"]
    assert values["base_values"].startswith(f"sha256:{row[-1]}") and len(row[-1]) == 8
    assert "2 adapters" in text and "4 arrays, 9 numbers" in text and "NaN" not in text
    lines = run("inspect", saved, "--values").splitlines()
    (row,) = [line.split() for line in lines if " b " in line]
    assert row[-1] == "1"
    monkeypatch.setattr("jno.lora._checkpoint.format.FORMAT_VERSION", 4)
    found = json.loads(run("inspect", saved, "--json"))
    assert list(found) == [
        *("file", "format_version", "versions", "adapters", "arrays", "numbers", "bytes"),
    ]
    assert found["format_version"] == 4
    (_, adapter) = found["adapters"]
    assert {*adapter} == {
        *("path", "wrapper", "distribution", "version", "variant", "rank", "alpha", "base_values"),
        *("layer", "arrays", "numbers", "bytes"),
    }
    shown = [adapter[name] for name in ("path", "wrapper", "rank", "alpha", "numbers", "bytes")]
    assert shown == ["b", "ToyLinear", 1, 2.0, 4, 16]
    assert adapter["arrays"]["lora_A"] == {"shape": [1, 2], "dtype": "float32", "bytes": 8}
    assert adapter["layer"]["arrays"]["bias"] == {"shape": [2], "dtype": "float32"}
    counted = json.loads(run("inspect", saved, "--json", "--values"))
    assert [adapter["non_finite"] for adapter in counted["adapters"]] == [0, 1]
    assert counted["non_finite"] == 1
