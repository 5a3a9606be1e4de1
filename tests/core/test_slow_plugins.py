"""A plugin that took long to load is named in a warning afterwards, with its seconds."""

import logging
import sys
import threading
import time
import types

import pytest

import jno.lora._registry._plugins as loading
from jno.lora import JnoLoraWarning, Registry

HOOK = "@hookimpl\ndef jno_lora_wrappers():\n    {body}\n    return [adapter('Late')]\n"
SLOW = {
    "at import": "import time\ntime.sleep(0.6)\n" + HOOK.format(body="pass"),
    "in the hook": HOOK.format(body="import time; time.sleep(0.6)"),
}


@pytest.fixture(autouse=True)
def _little_patience(monkeypatch):
    monkeypatch.setattr(loading, "PATIENCE", 0.2)


def lines(caplog):
    return [r.getMessage() for r in caplog.records if r.name == "jno.lora.plugins"]


@pytest.mark.parametrize("where", SLOW)
def test_a_slow_plugin_is_named_with_its_seconds_and_is_used_all_the_same(site, where):
    module = site.install("slow-lora", SLOW[where], version="2.1")
    registry = Registry()
    with pytest.warns(JnoLoraWarning) as caught:
        assert registry.resolve("Late")[0].__name__ == "Late"
    (message,) = (str(warning.message) for warning in caught)
    assert f"slow-lora 2.1 (entry point 'main' = '{module}') took 0." in message
    assert "JNO_LORA_BLOCK=slow-lora" in message
    registry.records()  # a second warning would be an error


def test_the_log_names_a_plugin_before_it_is_loaded_in_case_it_never_ends(site, caplog):
    code = "import jno_lora_test_gate as gate\ngate.closed.wait(60)\n" + HOOK.format(body="pass")
    site.plugin("acme-lora", '"Acme"')
    site.install("hanging-lora", code)
    gate = types.ModuleType("jno_lora_test_gate")
    gate.closed = threading.Event()
    site.monkeypatch.setitem(sys.modules, "jno_lora_test_gate", gate)
    registry, caught = Registry(), []

    def listing():
        with pytest.warns(JnoLoraWarning, match="hanging-lora"):
            caught.append(registry.records())

    waits = threading.Thread(target=listing, daemon=True)
    with caplog.at_level(logging.DEBUG, "jno.lora.plugins"):
        waits.start()
        deadline = time.monotonic() + 30
        while len(lines(caplog)) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.25)
        assert waits.is_alive() and not caught
        assert lines(caplog)[-1] == "loading hanging-lora (entry point 'main')"
        gate.closed.set()
        waits.join(timeout=30)
    assert [record.status for record in caught[0]] == ["loaded", "loaded"]


def test_a_slow_plugin_that_fails_has_one_warning_which_is_of_the_failure(site):
    site.install("slow-lora", "import time\ntime.sleep(0.4)\nraise RuntimeError('broken')")
    with pytest.warns(JnoLoraWarning) as caught:
        Registry().records()
    (warning,) = caught
    assert "could not be loaded" in str(warning.message)


def test_a_slow_machine_is_not_the_fault_of_the_zoo(site):
    site.install_zoo("import time\ntime.sleep(0.4)\n")
    (linear, _) = Registry().defaults()  # a warning would be an error
    assert linear.__name__ == "LoRALinear"


def test_quick_plugins_are_not_mentioned_and_no_thread_is_started(site, monkeypatch, caplog):
    monkeypatch.setattr(loading, "PATIENCE", 30.0)
    monkeypatch.setattr(threading.Thread, "start", None)
    site.plugin("quick-lora", '"Quick"')
    assert len(Registry().records()) == 1
    assert lines(caplog) == []
