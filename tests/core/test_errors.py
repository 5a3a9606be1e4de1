"""One base class, and what else each error is; how messages name what failed, and where."""

import threading
import types
import warnings

import equinox as eqx
import jax
import pytest

import jno.lora as lora
from jno.lora._errors import failing, warn

LAYERS = [eqx.nn.Linear(2, 2, key=jax.random.key(0))]


def test_a_warning_names_the_line_that_called_us_and_is_shown_once_for_it(recwarn):
    warnings.simplefilter("default")
    net = lora.Net(LAYERS)
    for _ in range(3):
        with net.mask("nothing there").disabled():
            pass
        net.freeze()
    thread = threading.Thread(target=lora.Net(LAYERS).mask("nothing there").freeze)
    thread.start()
    thread.join()
    assert [warning.filename for warning in recwarn] == [__file__, threading.__file__]


@pytest.mark.parametrize(("name", "named"), [("jno.other", "other.py"), ("acme.inner", __file__)])
def test_a_warning_skips_the_package_that_warns_but_not_another_one_in_our_namespace(name, named):
    module = types.ModuleType(name)
    module.warn = warn if name.startswith("acme") else lora.Net(LAYERS).mask("nothing").freeze
    exec(compile("def call(*args): warn(*args)", "other.py", "exec"), module.__dict__)
    with pytest.warns(lora.JnoLoraWarning) as caught:
        module.call(*(["here"] if name.startswith("acme") else []))
    assert [warning.filename for warning in caught] == [named]


def test_a_failure_says_what_could_not_be_done_why_and_what_helps():
    told = {"error": lora.SelectionError, "hint": lambda: "try it."}
    for error, arguments, cls, message in [
        (ValueError("why"), {"hint": "Try it."}, lora.WrapperError, "ValueError: why\nTry it."),
        (lora.PluginError("it is missing"), {}, lora.PluginError, "it is missing"),
        (TypeError("why"), told, lora.SelectionError, "TypeError: why\nTry it."),
    ]:
        with pytest.raises(cls) as caught, failing("fold it", **arguments):
            raise error
        assert str(caught.value) == f"Could not fold it: {message}"
        assert type(caught.value) is cls and caught.value.__cause__ is error
    with failing("fold it", hint=pytest.fail):  # a hint that is worked out when it is needed
        pass
    with pytest.raises(KeyboardInterrupt), failing("fold it"):  # which is not a failure
        raise KeyboardInterrupt
