"""`jno-lora compare` and `jno-lora demo`: what they print and write, and what went wrong."""

import sys

import pytest
from click.testing import CliRunner

import jno_lora_combine
from jno.lora._commands._cli import cli


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
    for name in [name for name in sys.modules if name.startswith("jno_lora_demos")]:
        monkeypatch.delitem(sys.modules, name)


def hide(monkeypatch, library):
    for name in [n for n in sys.modules if n == library or n.startswith(f"{library}.")]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, library, None)


TASK = """
import equinox as eqx
import jax
import jax.numpy as jnp
import jno.lora

def task():
    return {
        "model": eqx.nn.Linear(3, 2, key=jax.random.key(0)),
        "loss": lambda model, x: jnp.mean(jax.vmap(model)(x) ** 2),
        "batches": [jax.random.normal(jax.random.key(1), (4, 3))],
        "wrappers": ["full", "none"],
        "steps": 2,
        "key": jax.random.key(2),
        "rank": 2,
    }

def with_a_failure():
    return {**task(), "wrappers": ["lora", "nobody"], "steps": 1}

class Interrupting(jno.lora.LoRALinear):
    def __init__(self, base, rank, alpha, *, key):
        raise KeyboardInterrupt

def interrupted():
    return {**task(), "wrappers": ["none", Interrupting], "steps": 1}

def no_dict():
    return ["lora"]
"""


@pytest.fixture
def task(tmp_path, monkeypatch):
    (tmp_path / "my_tasks.py").write_text(TASK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "my_tasks"
    sys.modules.pop("my_tasks", None)


def test_compare_prints_a_table_and_writes_files(run, task, tmp_path):
    code, text = run("compare", f"{task}:task", "--csv", "made.csv", "--plot", "made.svg")
    assert code == 0, text
    assert "\n2 candidates, 2 steps each" in text
    assert len((tmp_path / "made.csv").read_text().splitlines()) == 3
    assert "<svg" in (tmp_path / "made.svg").read_text()


def test_compare_shows_what_is_finished_and_its_exit_code_says_that_it_is_not_all(run, task):
    code, text = run("compare", f"{task}:with_a_failure")
    assert code == 1
    assert "lora: final loss" in text and "nobody: UnknownNameError" in text
    code, text = run("compare", f"{task}:interrupted")
    assert code == 130
    assert "\n1 candidates, 1 steps each" in text and "Interrupted" in text


def test_compare_says_what_a_factory_must_return(run, task):
    said = {"no_dict": "as a dict, but gives a list", "nothing": "has no attribute 'nothing'"}
    for name, message in said.items():
        code, text = run("compare", f"{task}:{name}")
        assert code == 1 and message in text


@pytest.mark.parametrize(
    ("library", "extra", "command"),
    [
        ("optax", "compare", "compare my_tasks:task"),
        ("matplotlib", "plot", "compare my_tasks:task --plot a.png"),
        ("sklearn", "demo", "demo --task digits --output made"),
        ("foundax", "demo", "demo --task operator --output made"),
        ("jno_lora_conditional", "demo", "demo --task family --output made"),
    ],
)
@pytest.mark.usefixtures("forgotten", "task")
def test_a_missing_library_is_named_with_what_to_install_before_anything_is_trained(
    run, monkeypatch, tmp_path, library, extra, command
):
    hide(monkeypatch, library)
    # Its package remembers the module, too.
    monkeypatch.delitem(sys.modules, "jno_lora_combine._figure", raising=False)
    monkeypatch.delattr(jno_lora_combine, "_figure", raising=False)
    code, text = run(*command.split())
    assert code == 1
    assert f"needs {library}, which is not installed" in text
    assert f'pip install "jno-lora[{extra}]"' in text
    assert not (tmp_path / "made").exists()


def test_a_file_that_cannot_be_written_is_refused_before_anything_is_trained(run, tmp_path):
    code, text = run("compare", "no_such_module:task", "--plot", str(tmp_path / "made.foo"))
    assert code == 1
    assert "No picture can be saved as " in text and ".png" in text and ".svg" in text
    output = tmp_path / "nowhere" / "made.svg"
    for option in ("--csv", "--plot"):
        code, text = run("compare", "no_such_module:task", option, str(output))
        assert code == 2 and option in text
        assert str(output.parent) in text.replace("\n", "")
