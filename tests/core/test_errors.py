"""Warnings name the line of the user, once for each line."""

import threading
import types
import warnings

import equinox as eqx
import jax
import pytest

import jno.lora as lora
from jno.lora._errors import warn

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
