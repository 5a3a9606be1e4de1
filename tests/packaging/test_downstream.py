"""Plugins outside of the tree of packages: this commit's wheels and theirs, as users have them."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from tests.packaging.test_separation import BUILD, ROOT
from tests.pairs import ALL

EXAMPLES = sorted((ROOT / "examples" / "plugins").iterdir())
NEEDED = [ROOT, *(ROOT / "plugins" / f"jno-lora-{name}" for name in ("testing", "train", "zoo"))]
# Without JNO_LORA_TEST_ALL, checks that see how a plugin and the core fit together, and that run
# for three methods on the kind of layer.
ONLY = () if ALL else ("contract", "identity-at-init", "law", "alpha", "calibration")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder in which the wheels are installed, which come before all that is editable."""
    folder = tmp_path_factory.mktemp("downstream")
    wheels, target = folder / "wheels", folder / "installed"
    build = [sys.executable, "-c", BUILD, wheels, *NEEDED, *EXAMPLES]
    subprocess.run(build, check=True, capture_output=True)
    files = sorted(wheels.glob("*.whl"))
    assert len(files) == len(NEEDED) + len(EXAMPLES)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
    subprocess.run([*pip, "--target", target, *files], check=True, capture_output=True)
    return target


def run(*arguments, path=None, folder=None):
    """The output of a process of Python, with a folder of packages before all others."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("JNO_LORA")}
    environment = {**clean, "PYTHONPATH": str(path or "")}
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, cwd=folder
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# Its tier stands in the directory too.
OURS = ("jno-lora-attention",) if ALL else ()


@pytest.mark.parametrize("name", [*(path.name for path in EXAMPLES), *OURS])
def test_a_plugin_keeps_the_contract_of_this_commit(installed, name):
    only = [f"--only={check}" for check in ONLY]
    facts = json.loads(run("-m", "jno.lora", "check", name, "--json", *only, path=installed))
    assert {result["outcome"] for result in facts["results"]} <= {"passed", "not applicable"}
    assert len(facts["results"]) >= len(ONLY) and not facts["unchecked"]
    assert facts["tier"] == (None if ONLY else "complete")


MODEL = """
import json, sys
import equinox as eqx, jax
from jno.lora import Net
key = jax.random.key(0)
layers = [eqx.nn.Linear(6, 4, key=key), eqx.nn.Conv1d(2, 3, 3, key=key)]
net = Net(layers).lora(rank=4)
facts = {"defaults": [(row.path, row.wrapper.__name__) for row in net.summary()]}
facts["core"] = sys.modules["jno.lora"].__file__
"""
USING = """
from jno_lora_chebyshev_kan import ChebyshevKAN
model = [ChebyshevKAN(6, 4, 2, key=key)]
facts["plan"] = str(Net(model).plan(rank=2, wrapper="dora"))
facts["auto"] = [row.path for row in Net(layers + model).lora(rank=4).summary()]
net = Net(layers).lora(rank=2, wrapper="sine-lora")
net.save_adapters(sys.argv[1])
"""
PRINTED = "\nprint(json.dumps(facts))"
WITHOUT = """
try:
    Net(layers).load_adapters(sys.argv[1])
except Exception as err:
    facts["error"] = f"{type(err).__name__}: {err}"
"""


def test_what_users_see_of_a_plugin(installed, tmp_path):
    file = str(tmp_path / "a.safetensors")
    facts = json.loads(run("-c", MODEL + USING + PRINTED, file, path=installed))
    assert pathlib.Path(facts["core"]).is_relative_to(installed)
    without = json.loads(run("-c", MODEL + WITHOUT + PRINTED, file))
    # The defaults are the same, also where a plugin claims a layer of the model.
    assert facts["defaults"] == without["defaults"]
    assert facts["auto"] == [path for path, _ in without["defaults"]]
    assert "jno-lora-chebyshev-kan" in facts["plan"]
    # A file that names an adapter of a plugin that was removed.
    assert "CheckpointError" in without["error"] and "SineLoRALinear" in without["error"]
    assert 'pip install -U "jno-lora-sine-lora>=0.1.0"' in without["error"]
    description = run("-m", "jno.lora", "inspect", file)
    assert "SineLoRALinear" in description and "jno-lora-sine-lora" in description


@pytest.mark.parametrize("kind", ["command", *(("layer", "router") if ALL else ())])
def test_a_plugin_that_was_just_written_passes_its_own_tests(kind, tmp_path):
    run("-m", "jno.lora", "new", f"own-{kind}", "--kind", kind, "--output", str(tmp_path))
    folder = tmp_path / f"jno-lora-own-{kind}"
    text = run("-m", "pytest", "-q", "-W", "error", path=folder / "src", folder=folder)
    assert " passed" in text
