"""The distributions stand apart: wheels, installed step by step into one empty environment."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import venv
from xml.etree import ElementTree

from jno.lora import __version__

ROOT = pathlib.Path(__file__).parents[2]
PLUGINS = sorted(path.parent for path in (ROOT / "plugins").glob("*/pyproject.toml"))


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
        # Which tests of the core were run where it is alone.
        self.report = folder / "core.xml"
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
        # The programs of an earlier run of this test, which another environment had.
        clean["JNO_LORA_TEST_PROGRAMS"] = os.path.join(sys.prefix, "jax-programs", "core-alone")
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

    def errors(self, codes):
        """The message of the error that each code raises, by name."""
        errors = self.python(
            "import json\n"
            "errors = {}\n"
            f"for name, code in {codes!r}.items():\n"
            "    try:\n"
            "        exec(code, {})\n"
            "    except Exception as err:\n"
            "        errors[name] = str(err)\n"
            "print(json.dumps(errors))\n"
        )
        errors = json.loads(errors.stdout)
        assert errors.keys() == codes.keys()
        return errors

    def tests_of_the_core(self, *arguments):
        self.run("pytest", "-q", "-p", "no:cacheprovider", *arguments, cwd=ROOT)

    def plugins(self):
        return json.loads(self.run("jno-lora", "plugins", "--json").stdout)


def test_the_distributions_stand_apart(tmp_path):
    # One test, because the environment is filled step by step.
    environment = Environment(tmp_path)
    the_metadata(environment)
    the_core_alone(environment)
    a_plugin_from_outside(environment)
    the_core_and_the_zoo(environment)
    everything(environment)
    a_scaffolded_plugin(environment)


def the_metadata(environment):
    files = sorted(environment.wheels.iterdir())
    assert len(files) == 2 * (1 + len(PLUGINS))
    assert {path.name.split("-")[1].removesuffix(".tar.gz") for path in files} == {__version__}
    command = [sys.executable, "-m", "twine", "check", "--strict", *files]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def the_core_alone(environment):
    environment.install(
        environment.wheel("jno-lora"), "pytest", "pytest-xdist", "hypothesis", "beartype"
    )
    sharing = ("-n", "2", "--dist", "loadfile", "--no-loadscope-reorder")
    environment.tests_of_the_core(*sharing, "--junitxml", environment.report, "tests/core")
    doors = {
        "zoo": "from jno.lora import DoRALinear",
        "combine": "from jno.lora import combine",
        "compare": "from jno.lora import compare",
        "jno": "from jno.lora import in_jno",
        "peft": "import jno.lora.peft",
        "testing": "import jno.lora.testing",
        "train": "from jno.lora import calibrate",
        "optim": "import jno.lora.optim",
    }
    for extra, hint in environment.errors(doors).items():
        assert f'"jno-lora[{extra}]"' in hint and "pip install" in hint
    assert environment.plugins() == []
    assert environment.run("jno-lora", "doctor", check=False).returncode == 1


def a_plugin_from_outside(environment):
    project = environment.folder / "outside"
    shutil.copytree(ROOT / "tests" / "packaging" / "outside_plugin", project)
    environment.build(project)
    # Its adapters start from data, and its tests run the kit.
    needed = ("jno-lora-outside", "jno-lora-train", "jno-lora-testing")
    environment.install("--no-deps", *map(environment.wheel, needed))
    environment.run("pytest", "-q", "-W", "error", "-p", "no:cacheprovider", ".", cwd=project)
    environment.pip("uninstall", "--quiet", "--yes", "jno-lora-testing", "jno-lora-outside")


def the_core_and_the_zoo(environment):
    environment.install("--no-deps", environment.wheel("jno-lora-zoo"))
    environment.python(
        "import equinox as eqx, jax\n"
        "from jno.lora import DoRALinear, Net\n"
        "model = eqx.nn.MLP(6, 6, 6, 1, key=jax.random.key(0))\n"
        "x = jax.numpy.ones(6)\n"
        "for wrapper in (None, DoRALinear, 'auto', 'vera'):\n"
        "    net = Net(model).lora(rank=2, wrapper=wrapper)\n"
        "    assert jax.numpy.allclose(net(x), model(x), atol=1e-6)\n"
        "    assert jax.numpy.allclose(net.merge()(x), model(x), atol=1e-6)\n"
    )
    (zoo,) = environment.plugins()
    assert (zoo["status"], len(zoo["wrappers"])) == ("loaded", 246)
    environment.run("jno-lora", "doctor")


def everything(environment):
    environment.install("--no-deps", *(environment.wheel(plugin.name) for plugin in PLUGINS))
    plugins = environment.plugins()
    # These are called by their users, and register nothing.
    names = ("bank", "combine", "conditional", "peft", "quantized", "train", "uncertainty")
    libraries = [f"jno-lora-{name}" for name in names]
    expected = [p.name for p in PLUGINS if p.name not in libraries]
    assert sorted(p["distribution"] for p in plugins) == sorted(expected)
    assert {p["status"] for p in plugins} == {"loaded"}
    (error,) = environment.errors({"optim": "import jno.lora.optim"}).values()
    assert "needs optax" in error and 'pip install "jno-lora[optim]"' in error
    environment.install("optax")
    environment.python(
        "from jno.lora import in_jno\n"
        "from jno.lora.optim import lora_plus\n"
        "from jno.lora.peft import load_peft, save_peft\n"
        "from jno_lora_arrays import report_uses, through\n"
        "from jno_lora_bank import AdapterBank, at_slot\n"
        "from jno_lora_conditional import Conditional, at, fit\n"
        "from jno_lora_quantized import dequantize, quantize\n"
        "from jno_lora_train import ScannedLayers, Trainer, TrainingRun\n"
        "from jno_lora_uncertainty import Ensemble, calibrate, predict\n"
        "from jno.lora import Comparison, UpdateReport, combine, compare, to_lora\n"
    )
    environment.tests_of_the_core(*skipped(environment.report))


def skipped(report):
    """The tests, and the files of tests, that a run of pytest skipped."""
    chosen = set()
    for case in ElementTree.parse(report).iter("testcase"):
        if case.find("skipped") is not None:
            module, name = case.get("classname"), case.get("name")
            file = (module or name).replace(".", "/") + ".py"
            chosen.add(f"{file}::{name}" if module else file)
    assert any("test_trainability" in test for test in chosen)
    return sorted(chosen)


def a_scaffolded_plugin(environment):
    folder = environment.folder / "new"
    environment.run("jno-lora", "new", "embedding-bias", "--output", str(folder))
    project = folder / "jno-lora-embedding-bias"
    files = [path for path in project.rglob("*") if path.is_file()]
    assert len(files) <= 9
    environment.build(project)
    environment.install("--no-deps", environment.wheel("jno-lora-embedding-bias"))
    tests = environment.run("pytest", "-q", "-W", "error", "tests", cwd=project)
    assert " passed" in tests.stdout
    assert "failed" not in tests.stdout
    environment.python(
        "import equinox as eqx, jax\n"
        "from jno.lora import Net\n"
        "model = {'tokens': eqx.nn.Embedding(6, 4, key=jax.random.key(0))}\n"
        "net = Net(model).lora(rank=2, wrapper='EmbeddingBias')\n"
        "assert type(net.module['tokens']).__name__ == 'EmbeddingBias'\n"
    )
