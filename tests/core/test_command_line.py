"""The command line: its help, what it does not import, errors, and commands that plugins add."""

import errno
import subprocess
import sys

import pytest
from click.testing import CliRunner

import jno.lora
from jno.lora import SelectionError
from jno.lora._commands._cli import cli

from .asking import run


def test_it_starts_as_a_module_and_imports_no_optional_library():
    code = """
import runpy, sys
sys.argv = ["jno-lora", "--version"]
try:
    runpy.run_module("jno.lora", run_name="__main__")
finally:
    print(*sorted(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    version, modules = done.stdout.splitlines()
    assert version == f"jno-lora, version {jno.lora.__version__}"
    assert not {"matplotlib", "optax", "sklearn", "rich"} & {*modules.split()}
    assert not [name for name in modules.split() if name.startswith("jno_lora_")]


def test_an_error_of_ours_is_a_message_and_another_error_is_not_hidden(monkeypatch):
    ours = SelectionError("nothing matched\nthe nearest is 'encoder'")
    errors = [KeyError("a bug"), ours, BrokenPipeError(errno.EPIPE, "Broken pipe")]

    def fail(**_):
        raise errors.pop()

    monkeypatch.setattr(cli.commands["plugins"], "callback", fail)
    assert run("plugins", code=1) == ""  # who closes a pipe has read enough
    assert run("plugins", code=1) == "Error: nothing matched\nthe nearest is 'encoder'\n"
    assert isinstance(CliRunner().invoke(cli, ["plugins"]).exception, KeyError)


def adding(names, then=""):
    """A plugin that adds commands, each of which prints the module that it comes from."""
    return f"""
        import click

        @hookimpl
        def jno_lora_commands(group):
            for name in {names!r}:
                group.add_command(click.Command(name, callback=lambda: click.echo(__name__)))
            {then}
    """


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (adding(["lost"], "raise RuntimeError('no')"), "RuntimeError: no"),
        ("import no_such_library", "No module named"),
    ],
)
def test_a_plugin_whose_commands_fail_is_left_out_and_the_others_work(site, code, error):
    site.install("bad", code)
    greeting = site.install("greeting", adding(["greet"]))
    text = run("--help")
    (line,) = (line for line in text.splitlines() if line.startswith("Left out"))
    assert "bad" in line and error in line
    assert all(f"\n  {command} " in text for command in cli.commands)
    assert "  lost " not in text
    assert run("greet") == f"{greeting}\n"
    assert "No such command 'lost'" in run("lost", code=2)
    assert "bad" in run("doctor", code=1).partition("TROUBLE")[2]


def test_a_name_is_of_the_core_then_of_our_plugins_then_of_the_first_by_name(site):
    taking = site.install(
        "taking", adding(["doctor", "compare", "mine"], "group.commands.pop('plugins', None)")
    )
    ours = site.install("zoo-of-ours", adding(["mine"]))
    compare = site.install("jno-lora-compare", adding(["compare"]))
    text = run("--help")
    assert "  plugins " in text
    for line in ("'doctor' of taking", "'compare' of taking", "'mine' of zoo-of-ours"):
        assert f"the command {line}" in text
    assert run("mine") == f"{taking}\n" != f"{ours}\n"
    assert run("compare") == f"{compare}\n"
    assert taking not in run("doctor", code=1).splitlines()


def test_a_command_that_is_not_installed_says_what_may_have_it(site):
    text = run("demo", code=2)
    assert "not installed" in text
    assert all(f"jno-lora-{plugin}" in text for plugin in ("testing", "compare"))
