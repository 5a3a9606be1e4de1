"""The command line: its help, what it does not import, errors, and commands that plugins add."""

import re
import subprocess
import sys

import pytest
from click.testing import CliRunner

import jno.lora
from jno.lora import SelectionError
from jno.lora._commands._cli import cli

from .asking import run


def test_it_starts_as_a_module():
    command = [sys.executable, "-m", "jno.lora", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"jno-lora, version {jno.lora.__version__}\n"


def test_importing_it_imports_no_optional_library():
    code = "import sys, jno.lora._commands._cli; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = {*done.stdout.split()}
    assert not {"matplotlib", "optax", "sklearn", "rich"} & modules
    assert not [name for name in modules if name.startswith("jno_lora_")]


def test_an_error_of_ours_is_a_message_and_another_error_is_not_hidden(monkeypatch):
    errors = [KeyError("a bug"), SelectionError("nothing matched\nthe nearest is 'encoder'")]

    def fail(**_):
        raise errors.pop()

    monkeypatch.setattr(cli.commands["plugins"], "callback", fail)
    assert run("plugins", code=1) == "Error: nothing matched\nthe nearest is 'encoder'\n"
    assert isinstance(CliRunner().invoke(cli, ["plugins"]).exception, KeyError)


# --- commands of plugins

GREET = """
    import click

    @hookimpl
    def jno_lora_commands(group):
        @group.command()
        @click.option("--name", default="world")
        def greet(name):
            "Greet somebody."
            click.echo(f"hello {name}")
"""


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


def test_a_plugin_may_add_commands_alone_or_beside_adapters(site):
    site.install("greeting", GREET)
    both = adding(["there"], "pass\n\n        @hookimpl\n        def jno_lora_wrappers():\n")
    site.install("both", both + "            return [adapter('Both')]")
    text = run("--help")
    assert re.search(r"greet +Greet somebody\.", text) and "\n  there\n" in text
    assert "Left out" not in text
    assert run("greet", "--name", "you") == "hello you\n"
    assert "Both" in run("plugins", "--json")


BROKEN = {
    "raises": (adding(["lost"], "raise RuntimeError('no')"), "RuntimeError: no"),
    "misses a library": (adding(["lost"], "import no_such_library"), "ModuleNotFoundError"),
    "cannot be imported": ("import no_such_library", "No module named"),
}


@pytest.mark.parametrize(("code", "error"), BROKEN.values(), ids=BROKEN.keys())
def test_a_plugin_whose_commands_fail_is_left_out_and_the_others_work(site, code, error):
    site.install("bad", code)
    site.install("greeting", GREET)
    text = run("--help")
    (line,) = (line for line in text.splitlines() if line.startswith("Left out"))
    assert "bad" in line and error in line
    assert all(f"\n  {command} " in text for command in [*cli.commands, "greet"])
    assert "  lost " not in text
    assert run("greet") == "hello world\n"
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
