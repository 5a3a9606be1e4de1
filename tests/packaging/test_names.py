"""The names of this project's own distributions are taken."""

import pathlib

import pytest
from click.testing import CliRunner

from jno.lora._commands import cli

PLUGINS = sorted(path.parent for path in pathlib.Path(__file__).parents[2].glob("plugins/*/src"))


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda path: path.name)
def test_a_new_plugin_cannot_have_the_name_of_one_of_ours(plugin, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli, ["new", plugin.name.removeprefix("jno-lora-")])
    assert done.exit_code != 0
    assert f"{plugin.name} is a distribution of jno-lora itself" in done.output
    assert not list(tmp_path.iterdir())
