"""The class of an adapter in a file: by the plugin that provides it, or from the user."""

import sys
import warnings

import equinox as eqx
import pytest

from jno.lora import (
    CheckpointError,
    JnoLoraWarning,
    Net,
    PluginError,
    SelectionError,
    extract_adapters,
    load_adapters,
    read_adapters,
    refresh,
    registered,
    save_adapters,
)

from ..toys import ToyLinear, ToyScale, same
from ._tools import adapted

SHIFT = '"Shift", variant="shift"'


def shifted(model, getkey):
    (record,) = [r for r in registered() if r.distribution.lower().endswith("shifts")]
    return adapted(model, getkey, record.wrappers[0].cls, rank=1)


def saved_elsewhere(site, monkeypatch, model, getkey, file, **plugin):
    """A model whose adapters come from a plugin, which is then not installed any more."""
    with monkeypatch.context() as inside:
        site.monkeypatch = inside
        site.plugin(plugin.pop("name", "shifts"), SHIFT, **plugin)
        trained = shifted(model, getkey)
        save_adapters(trained, file)
    site.monkeypatch = monkeypatch
    refresh()
    return trained


def test_a_file_loads_no_plugin_but_those_that_it_names(site, model, getkey, file):
    module = site.plugin("shifts", SHIFT, version="1.2.3")
    trained = adapted(model, getkey, __import__(module).CLASSES[0], rank=1)
    save_adapters(trained, file)
    other = site.plugin("others", '"Other"')
    refresh()
    sys.modules.pop(other, None)
    assert same(load_adapters(model, file), trained)
    assert other not in sys.modules
    assert {record.distribution for record in registered()} == {"shifts", "others"}


def unavailable(file, model, **options):
    with pytest.raises(CheckpointError) as caught:
        load_adapters(model, file, **options)
    assert isinstance(caught.value.__cause__, PluginError)
    return str(caught.value)


def test_a_missing_plugin_is_named_once_with_its_command(site, getkey, file, monkeypatch):
    model = [eqx.nn.Linear(3, 3, key=getkey()) for _ in range(6)]
    saved_elsewhere(site, monkeypatch, model, getkey, file, version="1.2.3+cpu.1")
    message = unavailable(file, model)
    fact = "0, 1, 2 and 3 more: shifts:Shift is not available: shifts is not installed"
    assert fact in message and message.count("shifts:Shift") == 1
    assert 'pip install -U "shifts>=1.2.3"' in message
    with pytest.warns(JnoLoraWarning, match="0 of 6 adapters"):
        assert same(load_adapters(model, file, strict=False), model)


def test_a_plugin_that_is_blocked_broken_or_old_is_named(
    site, model, getkey, file, monkeypatch, unchecked
):
    site.plugin("shifts", SHIFT, version="2.0")
    save_adapters(shifted(model, getkey), file)
    monkeypatch.setenv("JNO_LORA_BLOCK", "shifts")
    refresh()
    assert "blocked: it is named in JNO_LORA_BLOCK" in unavailable(file, model)
    monkeypatch.delenv("JNO_LORA_BLOCK")

    for version, code, told in [
        ("1.9.9", None, "saved with Shift of shifts 2.0, which is newer than the installed 1.9.9"),
        ("2.0", "raise RuntimeError('no such thing')", "failed: RuntimeError: no such thing"),
        ("2.0", "jno_lora_api = 99", "incompatible"),
        ("2.0", "@hookimpl\ndef jno_lora_wrappers():\n    return []", "has no adapter 'Shift'"),
    ]:
        if code is None:
            site.plugin("shifts", SHIFT, version=version)
        else:
            site.install("shifts", code, version=version)
        refresh()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            message = unavailable(file, model)
        assert told in message
        assert 'pip install -U "shifts>=2.0"' in message


def test_a_class_of_no_plugin_is_passed_or_registered(model, getkey, file, registry):
    trained = adapted(model, getkey)
    save_adapters(trained, file)
    message = unavailable(file, model)
    assert "ToyLinear is a class that no plugin provides" in message
    assert "wrappers=[ToyLinear]" in message
    assert same(load_adapters(model, file, wrappers=[ToyScale, ToyLinear]), trained)
    assert same(Net(model).load_adapters(file, wrappers=ToyLinear).module, trained)
    assert list(read_adapters(file, wrappers=[ToyLinear])) == [*extract_adapters(trained)]
    other = type(ToyLinear)("ToyLinear", (ToyLinear,), {})
    with pytest.raises(SelectionError, match="Two classes of `wrappers` have the same name"):
        load_adapters(model, file, wrappers=[ToyLinear, other])
    registry.register(ToyLinear)
    assert same(load_adapters(model, file), trained)
