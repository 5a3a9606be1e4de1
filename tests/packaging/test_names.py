"""The names of this project's own distributions are taken."""

import pathlib

from click.testing import CliRunner

from jno.lora._commands import cli


def test_a_new_plugin_cannot_have_the_name_of_one_of_ours(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plugins = [path.parent.name for path in pathlib.Path(__file__).parents[2].glob("plugins/*/src")]
    assert plugins
    for name in plugins:
        done = CliRunner().invoke(cli, ["new", name.removeprefix("jno-lora-")])
        assert done.exit_code != 0
        assert f"{name} is a distribution of jno-lora itself" in done.output
    assert not list(tmp_path.iterdir())
