"""The command line: its help, what it does not import, and how it says what went wrong."""

import subprocess
import sys

import pytest
from click.testing import CliRunner

import jno.lora._registry._registry as registry_module
from jno.lora import SelectionError
from jno.lora._cli import cli
from jno.lora._registry import Registry


@pytest.fixture
def run():
    """Run a command; returns its exit code and all that it printed."""

    def run(*arguments):
        result = CliRunner().invoke(cli, arguments)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.output

    return run


@pytest.fixture
def forgotten(monkeypatch):
    """The demo as if nothing had imported it yet."""
    for name in [name for name in sys.modules if name.startswith("jno.lora._demo")]:
        monkeypatch.delitem(sys.modules, name)


def test_help_lists_the_commands(run):
    code, text = run("--help")
    assert code == 0
    assert "demo" in text and "digits" in text


def test_help_of_the_demo_names_its_options_and_defaults(run):
    code, text = run("demo", "--help")
    assert code == 0
    assert all(option in text for option in ("--output", "demo-output", "--seed", "--quick"))


@pytest.mark.parametrize(
    "start", [["-m", "jno.lora"], ["-c", "from jno.lora.__main__ import main; main()"]]
)
def test_it_starts_as_a_module_and_as_a_script(start):
    done = subprocess.run(
        [sys.executable, *start, "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("jno-lora, version ")


def test_importing_it_imports_no_optional_library():
    code = "import sys, jno.lora._cli; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"matplotlib", "optax", "sklearn", "rich", "jno_lora_zoo"} & {*done.stdout.split()}


@pytest.mark.parametrize("library", ["matplotlib", "optax", "scipy", "sklearn"])
def test_a_missing_library_is_named_with_what_to_install(
    run, forgotten, monkeypatch, tmp_path, library
):
    for name in [n for n in sys.modules if n == library or n.startswith(f"{library}.")]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, library, None)
    code, text = run("demo", "--output", str(tmp_path / "out"))
    assert code == 1
    assert text.startswith(f"Error: The demo needs {library}")
    assert 'pip install "jno-lora[demo]"' in text
    assert not (tmp_path / "out").exists()


def test_another_missing_module_is_not_taken_for_it(run, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "jno.lora._demo", None)
    with pytest.raises(ModuleNotFoundError, match="_demo"):
        run("demo", "--output", str(tmp_path))


def test_without_the_zoo_the_demo_says_so_before_it_trains(run, monkeypatch, tmp_path):
    pytest.importorskip("sklearn")
    pytest.importorskip("optax")
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(registry_module, "_DEFAULT", Registry(discover=False))
    code, text = run("demo", "--output", str(tmp_path))
    assert code == 1
    assert text.startswith("Error: ") and "jno-lora[zoo]" in text
    assert not list(tmp_path.iterdir())


def test_an_error_of_ours_is_a_message_and_no_traceback(run, monkeypatch):
    def fail(**_):
        raise SelectionError("nothing matched\nthe nearest is 'encoder'")

    monkeypatch.setattr(cli.commands["demo"], "callback", fail)
    code, text = run("demo")
    assert (code, text) == (1, "Error: nothing matched\nthe nearest is 'encoder'\n")


def test_an_error_that_is_not_ours_is_not_hidden(run, monkeypatch):
    def fail(**_):
        raise KeyError("a bug")

    monkeypatch.setattr(cli.commands["demo"], "callback", fail)
    with pytest.raises(KeyError):
        run("demo")


def test_an_output_that_cannot_be_a_directory_is_refused(run, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    for output in (file, file / "below"):
        code, text = run("demo", "--quick", "--output", str(output))
        assert code == 2
        assert "--output" in text


@pytest.mark.parametrize("seed", ["-1", str(2**32), "one"])
def test_a_seed_must_be_one_that_numpy_takes(run, seed):
    code, text = run("demo", "--seed", seed)
    assert code == 2
    assert "--seed" in text
