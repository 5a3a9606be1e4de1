"""One base class, and what else each error is; how messages name what failed, and where."""

import threading
import types
import warnings

import equinox as eqx
import jax
import pytest

import jno.lora as lora
from jno.lora._errors import failing, warn

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


LAYERS = [eqx.nn.Linear(2, 2, key=jax.random.key(0))]


def warn_in_a_block(net):
    with net.mask("nothing there").disabled():
        pass
    net.freeze()


WARNING = {
    "a method": lambda: lora.Net(LAYERS).mask("nothing there").freeze(),
    "another method": lambda: lora.Net(LAYERS).mask("nothing there").unfreeze(),
    "after a context manager": lambda: warn_in_a_block(lora.Net(LAYERS)),
}


@pytest.mark.parametrize("action", WARNING.values(), ids=WARNING)
def test_a_warning_names_the_line_of_the_user(action):
    with pytest.warns(lora.JnoLoraWarning) as caught:
        action()
    assert [warning.filename for warning in caught] == [__file__]


def test_a_warning_in_a_thread_names_the_line_that_called_us():
    seen = []

    def work():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            lora.Net(LAYERS).mask("nothing there").freeze()
        seen.extend(warning.filename for warning in caught)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [__file__]


@pytest.mark.parametrize(("name", "named"), [("jno.other", "other.py"), ("acme.inner", __file__)])
def test_a_warning_skips_the_package_that_warns_but_not_what_shares_a_namespace_with_us(
    name, named
):
    module = types.ModuleType(name)
    module.warn = warn if name.startswith("acme") else lora.Net(LAYERS).mask("nothing").freeze
    exec(compile("def call(*args): warn(*args)", "other.py", "exec"), module.__dict__)
    with pytest.warns(lora.JnoLoraWarning) as caught:
        module.call(*(["here"] if name.startswith("acme") else []))
    assert [warning.filename for warning in caught] == [named]


def test_a_warning_is_shown_once_for_a_line_by_default(recwarn):
    warnings.simplefilter("default")
    for _ in range(3):
        lora.Net(LAYERS).mask("nothing there").freeze()
    assert len(recwarn) == 1


def test_a_failure_says_what_could_not_be_done_why_and_what_helps():
    with pytest.raises(lora.WrapperError) as caught, failing("fold it", hint="Try again."):
        raise ZeroDivisionError("by nothing")
    assert str(caught.value) == "Could not fold it: ZeroDivisionError: by nothing\nTry again."
    assert type(caught.value.__cause__) is ZeroDivisionError


def test_an_error_of_ours_keeps_its_class():
    with pytest.raises(lora.PluginError) as caught, failing("fold it"):
        raise lora.PluginError("it is missing")
    assert str(caught.value) == "Could not fold it: it is missing"


def test_a_failure_may_have_a_class_and_a_hint_that_is_worked_out_when_it_is_needed():
    with failing("fold it", hint=pytest.fail):
        pass
    with (
        pytest.raises(lora.SelectionError) as caught,
        failing("fold it", lora.SelectionError, hint=lambda: "try again."),
    ):
        raise TypeError("no values")
    assert str(caught.value) == "Could not fold it: TypeError: no values\nTry again."


def test_an_interrupt_is_not_a_failure():
    with pytest.raises(KeyboardInterrupt), failing("fold it"):
        raise KeyboardInterrupt
