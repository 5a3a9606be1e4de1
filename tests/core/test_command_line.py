"""The command line: its help, what it does not import, errors, and commands that plugins add."""

import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from jno.lora import SelectionError, hookimpl, register
from jno.lora._commands._cli import cli

from .asking import run


def test_help_lists_the_commands(site):
    text = run("--help")
    assert all(f"\n  {name} " in text for name in cli.commands)


@pytest.mark.parametrize(
    "start", [["-m", "jno.lora"], ["-c", "from jno.lora.__main__ import main; main()"]]
)
def test_it_starts_as_a_module_and_as_a_script(start):
    done = subprocess.run(
        [sys.executable, *start, "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("jno-lora, version ")


def test_importing_it_imports_no_optional_library():
    code = "import sys, jno.lora._commands._cli; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = {*done.stdout.split()}
    assert not {"matplotlib", "optax", "sklearn", "rich"} & modules
    assert not [name for name in modules if name.startswith("jno_lora_")]


def test_an_error_of_ours_is_a_message_and_no_traceback(monkeypatch):
    def fail(**_):
        raise SelectionError("nothing matched\nthe nearest is 'encoder'")

    monkeypatch.setattr(cli.commands["plugins"], "callback", fail)
    assert run("plugins", code=1) == "Error: nothing matched\nthe nearest is 'encoder'\n"


def test_an_error_that_is_not_ours_is_not_hidden(monkeypatch):
    def fail(**_):
        raise KeyError("a bug")

    monkeypatch.setattr(cli.commands["plugins"], "callback", fail)
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


def test_a_plugin_of_commands_alone_is_listed_and_runs(site):
    site.install("greeting", GREET)
    assert "greet     Greet somebody." in run("--help")
    assert run("greet", "--name", "you") == "hello you\n"
    assert "--name" in run("greet", "--help")
    assert "Left out" not in run("plugins") + run("--help")


def test_a_plugin_may_have_commands_beside_adapters(site):
    site.install(
        "both",
        GREET
        + """
    @hookimpl
    def jno_lora_wrappers():
        return [adapter("Both")]
    """,
    )
    assert run("greet") == "hello world\n"
    assert "both:Both" not in run("adapters") and "Both" in run("adapters")


def test_a_hook_without_the_group_is_called_too(site):
    site.install("empty", "@hookimpl\ndef jno_lora_commands():\n    pass\n")
    assert "Left out" not in run("--help")


BROKEN = {
    "raises": (adding(["lost"], "raise RuntimeError('no')"), "RuntimeError: no"),
    "misses a library": (adding(["lost"], "import no_such_library"), "ModuleNotFoundError"),
    "cannot be imported": ("import no_such_library", "No module named"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_plugin_whose_commands_fail_is_left_out_and_the_others_work(site, name):
    code, error = BROKEN[name]
    site.install("bad", code)
    site.install("greeting", GREET)
    text = run("--help")
    (line,) = (line for line in text.splitlines() if line.startswith("Left out"))
    assert "bad" in line and error in line
    assert all(f"\n  {command} " in text for command in [*cli.commands, "greet"])
    assert "  lost " not in text
    assert run("greet") == "hello world\n"
    assert "No such command 'lost'" in run("lost", code=2)
    doctor = run("doctor", code=1)
    assert "bad" in doctor.partition("TROUBLE")[2]


def test_a_name_that_is_built_in_cannot_be_taken_over(site):
    takes = adding(["doctor", "mine"], "group.commands.pop('plugins', None)")
    module = site.install("taking", takes)
    text = run("--help")
    assert "the command 'doctor' of taking" in text and "the name is taken" in text
    assert "  plugins " in text
    assert run("mine") == f"{module}\n"
    assert module not in run("doctor", code=1).splitlines()


def test_the_first_plugin_by_name_owns_a_command_of_two(site):
    site.install("zebra", adding(["same", "other"]))
    first = site.install("aardvark", adding(["same"]))
    assert run("same") == f"{first}\n"
    assert "the command 'same' of zebra" in run("--help")


def test_commands_of_ours_go_before_those_of_others(site):
    site.install("aardvark", adding(["compare"]))
    ours = site.install("jno-lora-compare", adding(["compare"]))
    assert run("compare") == f"{ours}\n"


def test_a_command_that_is_built_in_loads_no_plugin(site):
    module = site.install("greeting", GREET)
    run("plugins", "--help")
    run("inspect", "--help")
    assert module not in sys.modules


@pytest.mark.parametrize(
    ("name", "plugin"),
    {"check": "testing", "compare": "compare", "demo": "compare", "new": "testing"}.items(),
)
def test_a_command_that_is_not_installed_says_what_may_have_it(site, name, plugin):
    text = run(name, code=2)
    assert "not installed" in text and f"jno-lora-{plugin}" in text


def test_a_command_of_a_plugin_that_is_blocked_is_not_there(site, monkeypatch):
    site.install("greeting", GREET)
    monkeypatch.setenv("JNO_LORA_BLOCK", "greeting")
    assert "No such command 'greet'" in run("greet", code=2)


def test_an_object_that_is_registered_may_add_commands(site):
    class Here:
        @staticmethod
        @hookimpl
        def jno_lora_commands(group):
            group.add_command(click.Command("here", callback=lambda: click.echo("here")))

    register(Here())
    assert run("here") == "here\n"
