"""The stages of the registry, each alone: find, classify, and the hooks of loaded plugins."""

import sys
import types

import pytest

from jno.lora import PluginError, Registry, hookimpl
from jno.lora._registry import _hookspecs
from jno.lora._registry._plugins import find_plugins, record_of

from .toys import ToyConv, ToyLinear, ToyScale


def test_finding_imports_nothing_and_sorts(site):
    modules = [site.plugin("zebra-lora", '"Zebra"'), site.install_zoo()]
    found = find_plugins()
    assert [(it.distribution, it.name, it.version) for it in found] == [
        ("jno-lora-zoo", "main", "1.0"),
        ("zebra-lora", "main", "1.0"),
    ]
    assert find_plugins("zebra-lora") == found[1:]
    assert find_plugins("nobody") == ()
    assert not set(modules) & set(sys.modules)


def hooks_of(plugin):
    return record_of(plugin, *ORIGIN).hooks


ORIGIN = ("plugin", "acme-lora", "2.0", "acme.plugin")
HOOKS = [name for name in vars(_hookspecs) if name.startswith("jno_lora_")]


def implementing(*names, **options):
    """An object with these hooks, each of which returns its name."""

    def made(name):
        def function():
            return [] if name == "jno_lora_wrappers" else name

        function.__name__ = name
        return hookimpl(function, **options)

    return types.SimpleNamespace(__name__="plugin", **{name: made(name) for name in names})


@pytest.mark.parametrize("name", HOOKS)
def test_one_hook_of_any_kind_makes_a_plugin(name):
    (hook,) = hooks_of(implementing(name))
    returned = hook(**dict.fromkeys(hook.spec.argnames))
    is_first_choice = name == "jno_lora_select"  # other hooks give the results of all plugins
    assert hook.name == name
    answer = [] if name == "jno_lora_wrappers" else name
    assert returned == (name if is_first_choice else [answer])


def test_all_hooks_of_an_object_are_found():
    plugin = implementing(*HOOKS)
    assert sorted(hook.name for hook in hooks_of(plugin)) == sorted(HOOKS)
    assert hooks_of(implementing("later", optionalhook=True))[0].name == "later"


def test_an_object_without_hooks_is_told_every_name():
    with pytest.raises(PluginError) as caught:
        hooks_of(implementing())
    assert all(f"`{name}(" in str(caught.value) for name in HOOKS)


def test_a_hook_gets_the_arguments_that_it_takes():
    class Plugin:
        @hookimpl
        def jno_lora_select(self, candidates, path):
            return path, candidates

    (hook,) = hooks_of(Plugin())
    assert hook(path="p", leaf=1, candidates=[2]) == ("p", [2])


def test_the_adapters_come_from_the_hook_for_adapters_alone():
    class Plugin:
        @hookimpl
        def jno_lora_wrappers(self):
            return (cls for cls in (ToyLinear, ToyScale, ToyLinear))

        @hookimpl
        def jno_lora_select(self):
            raise AssertionError

    record = record_of(Plugin(), *ORIGIN)
    assert [wrapper.qualified_name for wrapper in record.wrappers] == [
        "acme-lora:ToyLinear",
        "acme-lora:ToyScale",
    ]


# --- hooks of the plugins that are loaded

CHOOSES = "@hookimpl\ndef jno_lora_select(path):\n    return {number}\n"


def test_the_hooks_of_loaded_plugins_come_in_the_order_of_the_records(site):
    site.install("bolt-lora", CHOOSES.format(number=2))
    site.install("acme-lora", CHOOSES.format(number=1))
    site.install("jno-lora-zoo", CHOOSES.format(number=0))
    registry = Registry()
    registry.register(implementing("jno_lora_select"))
    assert [record.distribution for record, _ in registry.hooks("jno_lora_select")] == [
        "(in-process)"
    ]
    registry.records()
    found = registry.hooks("jno_lora_select")
    answers = [hook(path="", leaf=None, candidates=[]) for _, hook in found]
    assert answers == [0, 1, 2, "jno_lora_select"]
    assert [record.distribution for record, _ in found] == [
        "jno-lora-zoo",
        "acme-lora",
        "bolt-lora",
        "(in-process)",
    ]
    assert registry.hooks("jno_lora_wrappers") == []


def test_the_last_of_two_plugins_chooses_and_a_registered_policy_comes_first(site):
    select = "@hookimpl\ndef jno_lora_select(candidates):\n    return candidates[{number}]\n"
    for number, name in enumerate(["jno-lora-zoo", "acme-lora", "bolt-lora"]):
        site.install(name, select.format(number=number))
    registry, candidates = Registry(), [ToyConv, ToyLinear, ToyScale]
    registry.records()
    assert registry.select("head", None, candidates) is ToyScale
    policy = hookimpl(lambda candidates: candidates[0], specname="jno_lora_select")
    registry.register(types.SimpleNamespace(__name__="policy", choose=policy))
    assert registry.select("head", None, candidates) is ToyConv


@pytest.mark.parametrize("option", [{}, {"tryfirst": True}, {"trylast": True}])
def test_the_last_hook_chooses_unless_one_asks_to_be_first_or_last(option):
    def plugin(name, choice, **options):
        def jno_lora_select(candidates):
            return candidates[choice]

        hook = hookimpl(jno_lora_select, **options)
        return types.SimpleNamespace(__name__=name, jno_lora_select=hook)

    registry = Registry(discover=False)
    registry.register(plugin("first", 0, **({} if "trylast" in option else option)))
    registry.register(plugin("last", 1, **(option if "trylast" in option else {})))
    chosen = registry.select("head", None, [ToyLinear, ToyScale])
    assert chosen is (ToyLinear if option else ToyScale)
