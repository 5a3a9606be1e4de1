"""One base class, and what else each error is."""

import pytest

import jno.lora as lora

NAMES = ["SelectionError", "WrapperError", "PluginError", "CheckpointError", "PeftFormatError"]


@pytest.mark.parametrize("name", NAMES)
def test_every_error_is_caught_by_the_one_base_class(name):
    error = getattr(lora, name)
    assert issubclass(error, lora.JnoLoraError)
    assert error is not lora.JnoLoraError


def test_a_selection_error_is_a_value_error_and_a_plugin_error_an_import_error():
    assert issubclass(lora.SelectionError, ValueError)
    assert issubclass(lora.PluginError, ImportError)
    assert not issubclass(lora.WrapperError, ValueError | ImportError | TypeError)


def test_no_error_is_another():
    errors = [getattr(lora, name) for name in NAMES]
    for one in errors:
        for other in errors:
            assert issubclass(one, other) == (one is other)


def test_the_warning_is_a_user_warning_and_no_error():
    assert issubclass(lora.JnoLoraWarning, UserWarning)
    assert not issubclass(lora.JnoLoraWarning, lora.JnoLoraError)
