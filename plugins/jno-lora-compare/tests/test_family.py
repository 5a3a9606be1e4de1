"""The demo of a family of viscosities runs, with a conditional adapter."""

import re

import jax
import pytest
from click.testing import CliRunner
from compare_cases import names_commands_that_exist

from jno.lora import JnoLoraWarning
from jno.lora._commands._cli import cli

pytest.importorskip("foundax")
pytest.importorskip("jno_lora_conditional")


@pytest.fixture(autouse=True)
def defaults_of_jax():
    """foundax is written for JAX's own defaults."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def test_the_demo_of_a_family(tmp_path):
    arguments = ["demo", "--task", "family", "--quick", "--output", str(tmp_path)]
    with pytest.warns(JnoLoraWarning, match="recommend no coordinate"):  # two steps of pretraining
        result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    number = r" +([\d.e+-]+)"
    row = re.compile(rf"^ *(no adaptation|conditional, FiLM){number * 7} +(\S+) *$")
    rows = {m[1]: m.groups()[1:] for m in map(row.match, result.output.splitlines()) if m}
    assert list(rows) == ["no adaptation", "conditional, FiLM"]
    before, conditional = rows.values()
    # Trained, in per cent; the change of the weights, and the error, at the pretrained viscosity.
    assert float(before[0]) == 0 < float(conditional[0]) < 6
    assert float(before[1]) == float(conditional[1]) == 0
    assert before[2] == conditional[2]
    assert all(0 < float(error) < 2 for row in rows.values() for error in row[2:7])
    assert "10 fits in one program" in result.output
    for name in ("family.png", "family-field.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    names_commands_that_exist(result.output)
