"""Wheels of jNO and of jno-lora in one environment: each can come first, each can go."""

import os
import pathlib
import subprocess
import sys
import venv

import pytest

WHEELS = pathlib.Path(os.environ["JNO_LORA_TEST_JNO_WHEELS"]).resolve()


@pytest.fixture
def environment(tmp_path):
    venv.create(tmp_path, with_pip=False)
    (python,) = tmp_path.glob("bin/python")

    def pip(*arguments):
        command = [sys.executable, "-m", "pip", "--python", str(python), *arguments]
        subprocess.run(command, check=True, capture_output=True)
        (packages,) = tmp_path.glob("lib/python*/site-packages")
        return {str(p.relative_to(packages)): p.read_bytes() for p in packages.glob("jno/**/*.py")}

    return pip


def wheel(*names):
    (found,) = (path for name in names for path in WHEELS.glob(f"{name}-[0-9]*.whl"))
    return str(found)


THEIRS, OURS = ("jax_neural_operators", "jax_numerical_operators"), ("jno_lora",)


@pytest.mark.parametrize("theirs_first", [True, False])
@pytest.mark.parametrize("theirs_stay", [True, False])
def test_either_order_and_either_one_removed(environment, theirs_first, theirs_stay):
    order = [wheel(*THEIRS), wheel(*OURS)]
    install = ("install", "--no-deps", "--no-compile", "--no-index")
    alone = {}
    for first in order:
        alone[first] = environment(*install, first)
        environment("uninstall", "-y", pathlib.Path(first).name.split("-")[0])
    order = order if theirs_first else order[::-1]
    environment(*install, order[0])
    both = environment(*install, order[1])
    assert both == alone[order[0]] | alone[order[1]]
    stays, goes = order if theirs_first is theirs_stay else order[::-1]
    left = environment("uninstall", "-y", pathlib.Path(goes).name.split("-")[0])
    assert left == alone[stays]


def test_doctor_says_that_ours_are_inside():
    done = subprocess.run(
        [sys.executable, "-m", "jno.lora", "doctor"], capture_output=True, text=True
    )
    assert "ours inside" in " ".join(done.stdout.split()), done.stdout + done.stderr
    # On a busy machine, plugins may load slowly.
    troubles = [line for line in done.stdout.splitlines() if line.startswith("TROUBLE")]
    assert all("to load; more than" in trouble for trouble in troubles), done.stdout
    assert done.returncode == bool(troubles)
