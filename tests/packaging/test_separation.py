"""The distributions stand apart: wheels, installed step by step into one empty environment."""

import os
import pathlib
import shutil
import subprocess
import sys
import venv

from jno.lora import __version__

ROOT = pathlib.Path(__file__).parents[2]
PLUGINS = sorted(path.parent for path in (ROOT / "plugins").glob("*/pyproject.toml"))
TESTING = "jno-lora-testing"


# The hooks that pip calls. The wheel is built from the sdist, so that both are whole.
BUILD = """
import os, pathlib, shutil, sys, tempfile
from hatchling.build import build_sdist, build_wheel

wheels, *projects = sys.argv[1:]
for project in projects:
    os.chdir(project)
    sdist = build_sdist(wheels)
    with tempfile.TemporaryDirectory() as folder:
        shutil.unpack_archive(pathlib.Path(wheels, sdist), folder)
        (unpacked,) = pathlib.Path(folder).iterdir()
        os.chdir(unpacked)
        build_wheel(wheels)
        os.chdir(wheels)
"""


class Environment:
    """An empty virtual environment, and the wheels of this repository."""

    def __init__(self, folder):
        self.folder = folder
        self.bin = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
        self.wheels = folder / "wheels"
        venv.create(folder / "venv")
        self.build(ROOT, *PLUGINS)

    def build(self, *projects):
        build = [sys.executable, "-c", BUILD, self.wheels, *projects]
        done = subprocess.run(build, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    def install(self, *requirements):
        # Most modules of the libraries are never imported, and to compile all takes long.
        self.pip("install", "--quiet", "--no-compile", *requirements)

    def pip(self, *arguments):
        # The pip of this process: to install another takes as long as to build all the wheels.
        python = self.bin / "python"
        pip = [sys.executable, "-m", "pip", "--python", python, *arguments]
        done = subprocess.run(pip, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    def wheel(self, distribution):
        (wheel,) = self.wheels.glob(f"{distribution.replace('-', '_')}-[0-9]*.whl")
        return str(wheel)

    def run(self, program, *arguments, check=True, cwd=None):
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "JNO_LORA"))}
        # The environment is new, but not the programs that its tests compile.
        clean["JNO_LORA_TEST_PROGRAMS"] = os.path.join(sys.prefix, "jax-programs")
        done = subprocess.run(
            [self.bin / program, *arguments],
            capture_output=True,
            text=True,
            cwd=cwd or self.folder,
            env=clean,
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def python(self, code, **kwargs):
        return self.run("python", "-c", code, **kwargs)


def test_the_distributions_stand_apart(tmp_path):
    # One test, because the environment is filled step by step.
    environment = Environment(tmp_path)
    the_metadata(environment)
    the_core_alone(environment)
    plugins_from_outside(environment)
    the_core_and_the_zoo(environment)
    everything(environment)


def the_metadata(environment):
    files = sorted(environment.wheels.iterdir())
    assert len(files) == 2 * (1 + len(PLUGINS))
    assert {path.name.split("-")[1].removesuffix(".tar.gz") for path in files} == {__version__}
    command = [sys.executable, "-m", "twine", "check", "--strict", *files]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def the_core_alone(environment):
    environment.install(environment.wheel("jno-lora"), "pytest-xdist", "hypothesis", "beartype")
    sharing = ("-n", "2", "--dist", "loadfile", "--no-loadscope-reorder")
    done = environment.run(
        "pytest", "-q", "-p", "no:cacheprovider", *sharing, "tests/core", cwd=ROOT
    )
    assert "skipped" not in done.stdout
    assert environment.run("jno-lora", "doctor", check=False).returncode == 1


def plugins_from_outside(environment):
    """A plugin that starts from data and shares an array, and the scaffold, on one of its cases."""
    needed = ("jno-lora-train", "jno-lora-zoo", TESTING)
    environment.install("--no-deps", *map(environment.wheel, needed))
    project = environment.folder / "outside"
    shutil.copytree(ROOT / "tests" / "packaging" / "outside_plugin", project)
    environment.run("jno-lora", "new", "embedding-bias", "--output", environment.folder)
    scaffold = environment.folder / "jno-lora-embedding-bias"
    assert len([path for path in scaffold.rglob("*") if path.is_file()]) <= 10
    environment.build(project, scaffold)
    wheels = map(environment.wheel, ("jno-lora-outside", scaffold.name))
    environment.install("--no-deps", *wheels)
    for folder, chosen in ((project, ""), (scaffold / "tests", "not conformance or wide")):
        environment.run("pytest", "-q", "-W", "error", "-k", chosen, ".", cwd=folder)
    environment.pip("uninstall", "--quiet", "--yes", TESTING)


def the_core_and_the_zoo(environment):
    environment.python(
        "import equinox as eqx, jax\n"
        "from jno.lora import DoRALinear, MissingLibraryError, Net, registered\n"
        "model = eqx.nn.MLP(6, 6, 6, 1, key=jax.random.key(0))\n"
        "x = jax.numpy.ones(6)\n"
        "for wrapper in (None, DoRALinear, 'auto', 'vera'):\n"
        "    net = Net(model).lora(rank=2, wrapper=wrapper)\n"
        "    assert jax.numpy.allclose(net(x), model(x), atol=1e-6)\n"
        "    assert jax.numpy.allclose(net.merge()(x), model(x), atol=1e-6)\n"
        "sizes = {record.distribution: len(record.wrappers) for record in registered()}\n"
        "names = ('zoo', 'embedding-bias', 'outside')\n"
        "assert [sizes.pop('jno-lora-' + name) for name in names] == [246, 1, 1] and not sizes\n"
        "net = Net([eqx.nn.Embedding(6, 4, key=jax.random.key(0))])\n"
        "net.lora(rank=2, wrapper='EmbeddingBias')\n"
        "assert type(net.module[0]).__name__ == 'EmbeddingBias'\n"
        "try:\n"
        "    import jno_lora_train.optim\n"
        "except MissingLibraryError as err:\n"
        "    assert 'needs optax' in str(err) and 'pip install \"jno-lora[train]\"' in str(err)\n"
        "else:\n"
        "    raise AssertionError\n"
    )


def everything(environment):
    wheels = (environment.wheel(plugin.name) for plugin in PLUGINS)
    environment.install("--no-deps", *wheels)
    environment.install("optax")
    found = environment.python(
        "from jno.lora import registered\n"
        "from jno_lora_train.optim import lora_plus\n"
        "from jno_lora_peft import load_peft, save_peft\n"
        "from jno_lora_arrays import report_uses, through\n"
        "from jno_lora_bank import AdapterBank, at_slot\n"
        "from jno_lora_conditional import Conditional, at, fit\n"
        "from jno_lora_convert import convert_lora\n"
        "from jno_lora_quantized import dequantize, quantize\n"
        "from jno_lora_train import ScannedLayers, Trainer, TrainingRun\n"
        "from jno_lora_uncertainty import Ensemble, calibrate, predict\n"
        "from jno_lora_combine import UpdateReport, combine, to_lora\n"
        "from jno_lora_compare import Comparison, compare\n"
        "import jno_lora_jno\n"
        "print(*[record.distribution for record in registered() if record.status == 'loaded'])\n"
    )
    # These are called by their users, and register nothing.
    names = ("bank", "quantized", "train", "uncertainty")
    registered = {p.name for p in PLUGINS} - {f"jno-lora-{name}" for name in names}
    outside = {"jno-lora-embedding-bias", "jno-lora-outside"}
    assert set(found.stdout.split()) == registered | outside
    environment.run("jno-lora", "doctor")
