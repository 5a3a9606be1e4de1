"""The parts of a training loop moved to jno-lora-train. Their old names still work, and warn."""

import pathlib
import subprocess
import sys

import pytest

import jno_lora_compare
import jno_lora_train
from jno.lora.types import JnoLoraWarning

MOVED = ["ScannedLayers", "Trainer", "TrainingRun"]


@pytest.mark.parametrize("name", MOVED)
def test_an_old_name_is_the_new_class_and_says_so(name):
    with pytest.warns(JnoLoraWarning, match=f"from jno_lora_train import {name}") as warned:
        value = getattr(jno_lora_compare, name)
    assert value is getattr(jno_lora_train, name)
    assert [pathlib.Path(warning.filename).name for warning in warned] == [
        pathlib.Path(__file__).name
    ]


def test_an_import_of_an_old_name_warns_at_its_line():
    with pytest.warns(JnoLoraWarning) as warned:
        from jno_lora_compare import Trainer
    assert Trainer is jno_lora_train.Trainer
    # Python looks a name up twice when it imports the name from a package.
    assert {pathlib.Path(warning.filename).name for warning in warned} == {
        pathlib.Path(__file__).name
    }


def test_a_script_sees_one_warning(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("from jno_lora_compare import Trainer\n")
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert run.stderr.count("JnoLoraWarning") == 1
    assert f"{script}:1: " in run.stderr


def test_old_names_are_not_listed_and_unknown_names_are_errors():
    assert not {*MOVED} & {*jno_lora_compare.__all__}
    with pytest.raises(AttributeError, match="no attribute 'Trainers'"):
        _ = jno_lora_compare.Trainers
