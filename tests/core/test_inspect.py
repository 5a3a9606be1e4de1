"""`jno-lora inspect`: what a file of adapters holds, without a model or a plugin."""

import json

import equinox as eqx
import jax.numpy as jnp
import pytest

from jno.lora import apply_lora, save_adapters

from .asking import run
from .toys import ToyLinear


@pytest.fixture
def saved(tmp_path, getkey, site):
    """A file of two adapters, of which one holds a NaN. No plugin can be found."""
    layers = {"[red]a": eqx.nn.Linear(3, 2, key=getkey()), "b": eqx.nn.Linear(2, 2, key=getkey())}
    model = apply_lora(layers, 1, 2.0, key=getkey(), wrapper=ToyLinear)
    model["b"] = eqx.tree_at(lambda w: w.lora_B, model["b"], jnp.asarray([[jnp.nan], [1.0]]))
    save_adapters(model, tmp_path / "file")
    return str(tmp_path / "file")


def test_inspect_shows_a_file_as_a_table(saved):
    text = run("inspect", saved)
    (row,) = [line.split() for line in text.splitlines() if "[red]a" in line]
    form, (values, *_) = row[:-1], json.loads(run("inspect", saved, "--json"))["adapters"]
    assert form == ["[red]a", "Linear", "ToyLinear", "(no", "plugin)", "1", "2", "2", "5", "20"]
    assert values["base_values"].startswith(f"sha256:{row[-1]}") and len(row[-1]) == 8
    assert "2 adapters" in text and "4 arrays, 9 numbers" in text and "NaN" not in text
    lines = run("inspect", saved, "--values").splitlines()
    (row,) = [line.split() for line in lines if " b " in line]
    assert row[-1] == "1"


def test_inspect_prints_json_with_stable_keys(saved, monkeypatch):
    monkeypatch.setattr("jno.lora._checkpoint._format.FORMAT_VERSION", 4)
    found = json.loads(run("inspect", saved, "--json"))
    assert list(found) == [
        *("file", "format_version", "versions", "adapters", "arrays", "numbers", "bytes"),
    ]
    assert found["format_version"] == 1  # of the file, and not the newest
    assert found["adapters"][1] == {
        "path": "b",
        "wrapper": "ToyLinear",
        "distribution": None,
        "version": "",
        "variant": None,
        "rank": 1,
        "alpha": 2.0,
        "base_values": found["adapters"][1]["base_values"],
        "layer": {
            "class": "Linear",
            "stack_ndim": 0,
            "arrays": {
                "weight": {"shape": [2, 2], "dtype": "float32"},
                "bias": {"shape": [2], "dtype": "float32"},
            },
        },
        "arrays": {
            "lora_A": {"shape": [1, 2], "dtype": "float32", "bytes": 8},
            "lora_B": {"shape": [2, 1], "dtype": "float32", "bytes": 8},
        },
        "numbers": 4,
        "bytes": 16,
    }
    counted = json.loads(run("inspect", saved, "--json", "--values"))
    assert [adapter["non_finite"] for adapter in counted["adapters"]] == [0, 1]
    assert counted["non_finite"] == 1


def test_inspect_refuses_a_file_that_is_not_of_adapters(saved):
    assert "cannot be used" in run("inspect", __file__, code=1)
    assert "No such file" in run("inspect", saved + "?", code=1)
