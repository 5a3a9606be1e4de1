"""The parts of a training loop moved to jno-lora-train. Their old names still work, and warn."""

import pathlib

import pytest

import jno_lora_compare
import jno_lora_train
from jno.lora.types import JnoLoraWarning


@pytest.mark.parametrize("name", ["ScannedLayers", "Trainer", "TrainingRun"])
def test_an_old_name_is_the_new_class_and_says_so(name):
    with pytest.warns(JnoLoraWarning, match=f"from jno_lora_train import {name}") as warned:
        value = getattr(jno_lora_compare, name)
    assert value is getattr(jno_lora_train, name)
    files = [pathlib.Path(warning.filename).name for warning in warned]
    assert files == [pathlib.Path(__file__).name]
