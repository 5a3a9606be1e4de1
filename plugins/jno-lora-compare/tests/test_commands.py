"""`jno-lora compare` and `jno-lora demo`: what they print and write, and what went wrong."""

import io
import sys

import pytest
from click.testing import CliRunner

import jno.lora._registry._registry as registry_module
import jno.lora._showing
import jno_lora_compare.plugin
from jno.lora import SelectionError, plot_adapters
from jno.lora._commands._cli import cli
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
    for name in [name for name in sys.modules if name.startswith("jno_lora_demos")]:
        monkeypatch.delitem(sys.modules, name)


def test_help_of_the_demo_names_its_options_and_defaults(run):
    code, text = run("demo", "--help")
    assert code == 0
    text = "".join(text.split())  # lines break in names, too
    assert all(option in text for option in ("--output", "demo-output", "--seed", "--quick"))
    assert "[digits|operator|family]" in text


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


@pytest.mark.parametrize(
    ("library", "task"),
    [
        ("foundax", "operator"),
        ("jno_lora_foundax", "operator"),
        ("jno_lora_conditional", "family"),
    ],
)
def test_an_operator_needs_foundax_and_its_adapters(
    run, forgotten, monkeypatch, tmp_path, library, task
):
    monkeypatch.setitem(sys.modules, library, None)
    code, text = run("demo", "--task", task, "--output", str(tmp_path / "out"))
    assert code == 1
    assert f"needs {library}, which is not installed" in text
    assert 'pip install "jno-lora[demo]"' in text
    assert not (tmp_path / "out").exists()


def test_another_missing_module_is_not_taken_for_it(run, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "jno_lora_demos.digits", None)
    with pytest.raises(ModuleNotFoundError, match=r"jno_lora_demos\.digits"):
        run("demo", "--output", str(tmp_path))


def test_without_the_zoo_the_demo_says_so_before_it_trains(run, monkeypatch, tmp_path):
    pytest.importorskip("sklearn")
    pytest.importorskip("optax")
    pytest.importorskip("matplotlib")
    alone = Registry(discover=False)
    alone.register(jno_lora_compare.plugin)
    monkeypatch.setattr(registry_module, "_DEFAULT", alone)
    code, text = run("demo", "--output", str(tmp_path))
    assert code == 1
    assert text.startswith("Error: ") and "jno-lora[zoo]" in text
    assert not list(tmp_path.iterdir())


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


# --- compare

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
        "wrappers": ["lora", "none"],
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
    return {**task(), "wrappers": ["none", Interrupting, "lora"], "steps": 1}

def no_dict():
    return ["lora"]

NUMBER = 3
"""


@pytest.fixture
def task(tmp_path, monkeypatch):
    (tmp_path / "my_tasks.py").write_text(TASK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "my_tasks"
    sys.modules.pop("my_tasks", None)


def test_compare_prints_a_table_and_writes_files(run, task, tmp_path):
    pytest.importorskip("optax")
    code, text = run("compare", f"{task}:task", "--csv", "made.csv", "--plot", "made.svg")
    assert code == 0, text
    assert "\n2 candidates, 2 steps each" in text
    assert len((tmp_path / "made.csv").read_text().splitlines()) == 3
    assert "<svg" in (tmp_path / "made.svg").read_text()


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_compare_draws_its_table_on_a_terminal(task, monkeypatch):
    pytest.importorskip("optax")
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("COLUMNS", "100")
    assert cli.main(["compare", f"{task}:task"], standalone_mode=False) == 0
    text = sys.stdout.getvalue()
    assert "2 candidates, 2 steps each" in text and "─" in text
    assert {"lora", "none"} <= {line.split()[0] for line in text.splitlines() if line.split()}


def test_compare_exits_with_1_if_a_candidate_failed_and_shows_the_others(run, task):
    pytest.importorskip("optax")
    code, text = run("compare", f"{task}:with_a_failure")
    assert code == 1
    assert "lora" in text and "nobody: UnknownNameError" in text


def test_compare_that_is_interrupted_shows_what_is_finished(run, task):
    pytest.importorskip("optax")
    code, text = run("compare", f"{task}:interrupted")
    assert code == 130
    assert "\n1 candidates, 1 steps each" in text and "Interrupted" in text


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_dict", "as a dict, but returned a list"),
        ("NUMBER", "is 3, but must be a function"),
        ("nothing", "cannot be imported: module 'my_tasks' has no attribute 'nothing'"),
    ],
)
def test_compare_says_what_a_factory_must_return(run, task, name, message):
    code, text = run("compare", f"{task}:{name}")
    assert code == 1
    assert message in text
    assert '"batches": [batch, ...]' in text or "my_package.tasks:digits" in text


@pytest.mark.parametrize(
    ("library", "option"), [("optax", []), ("matplotlib", ["--plot", "a.png"])]
)
def test_compare_says_which_extra_is_missing_before_it_trains(
    run, task, monkeypatch, library, option
):
    for name in [n for n in sys.modules if n == library or n.startswith(f"{library}.")]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, library, None)
    # Its package remembers the module, too.
    monkeypatch.delitem(sys.modules, "jno.lora._showing.plots", raising=False)
    monkeypatch.delattr(jno.lora._showing, "plots", raising=False)
    code, text = run("compare", f"{task}:task", *option)
    extra = {"optax": "compare", "matplotlib": "plot"}[library]
    assert code == 1
    assert f"needs {library}, which is not installed" in text
    assert f'pip install "jno-lora[{extra}]"' in text
    assert "candidates" not in text


def test_a_picture_of_no_known_format_is_refused_before_anything_is_trained(run, tmp_path):
    code, text = run("compare", "no_such_module:task", "--plot", str(tmp_path / "made.foo"))
    assert code == 1
    assert "No picture can be saved as " in text and ".png" in text and ".svg" in text
    with pytest.raises(SelectionError, match="No picture can be saved as 'made'"):
        plot_adapters([], "made")


@pytest.mark.parametrize("option", ["--csv", "--plot"])
def test_a_directory_that_is_missing_is_said_before_anything_is_trained(run, tmp_path, option):
    output = tmp_path / "nowhere" / "made.svg"
    code, text = run("compare", "no_such_module:task", option, str(output))
    assert code == 2
    assert option in text and "there is no directory" in text
    assert str(output.parent) in text.replace("\n", "")
