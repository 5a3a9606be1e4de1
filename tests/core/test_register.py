"""Classes, and objects with hooks, that are registered in the process."""

import types

import pytest

import jno.lora
from jno.lora import (
    PluginError,
    Registry,
    WrapperError,
    hookimpl,
    plan_lora,
    register,
    registered,
)

from .asking import one
from .toys import MODEL_LINEARS, ToyConv, ToyLinear, ToyScale


def test_register_gives_the_class_back_so_that_it_is_a_decorator(registry):
    @register
    class Mine(ToyLinear):
        variant = "mine"

    assert isinstance(Mine, type) and one(registry, "Mine") is Mine
    (record,) = registered()
    assert (record.distribution, record.status, record.value) == ("(in-process)", "loaded", "Mine")


def test_a_class_that_is_defined_again_replaces_the_former(registry, model):
    def cell(variant):
        @register
        class Notebook(ToyLinear):
            pass

        Notebook.__qualname__ = "Notebook"
        Notebook.variant = variant
        return register(Notebook)

    first, second = cell("one"), cell("two")
    assert first is not second
    assert one(registry, "Notebook") is second
    rows = plan_lora(model, 1, wrapper="Notebook").wrapped
    assert [row.path for row in rows] == list(MODEL_LINEARS)


def test_registering_one_class_twice_is_the_same_as_once(registry):
    register(ToyScale)
    register(ToyScale)
    assert one(registry, "ToyScale") is ToyScale
    assert len(registered()) == 1


def test_a_broken_class_is_refused_and_not_registered(registry):
    class Broken(ToyLinear):
        adapter_fields = ("nothing",)

    with pytest.raises(WrapperError, match=r"(?s)Broken is not.*names 'nothing'"):
        register(Broken)
    assert registered() == ()


def test_an_object_with_hooks_is_a_plugin(registry):
    class Plugin:
        @hookimpl
        def jno_lora_wrappers(self):
            return iter([ToyScale, ToyConv])

    plugin = Plugin()
    assert register(plugin) is plugin
    assert [w.name for w in registered()[0].wrappers] == ["ToyScale", "ToyConv"]
    assert one(registry, "ToyConv") is ToyConv


def test_an_object_without_hooks_is_refused_and_told_what_to_mark(registry):
    with pytest.raises(PluginError, match=r"none of the hooks. Mark .*@jno.lora.hookimpl"):
        register(types.SimpleNamespace(jno_lora_wrappers=list))
    assert registered() == ()


class Misspelled:
    @hookimpl
    def jno_lora_wraperss(self):
        return [ToyScale]


class TooManyArguments:
    @hookimpl
    def jno_lora_select(self, path, leaf, candidates, model):
        return None


@pytest.mark.parametrize(
    ("plugin", "message"),
    [
        (Misspelled(), r"jno_lora_wraperss[^$]*`jno_lora_wrappers\(\)`"),
        (TooManyArguments(), r"model[^$]*`jno_lora_select\(path, leaf, candidates\)`"),
    ],
)
def test_an_object_with_a_hook_that_there_is_not_is_refused_each_time(registry, plugin, message):
    for _ in range(2):
        with pytest.raises(PluginError, match=message):
            register(plugin)
    assert registered() == ()


def test_a_hook_that_is_marked_as_optional_may_be_of_a_later_version(registry):
    class Plugin:
        @hookimpl
        def jno_lora_wrappers(self):
            return [ToyScale]

        @hookimpl(optionalhook=True)
        def jno_lora_of_tomorrow(self):
            raise AssertionError

    register(Plugin())
    assert one(registry, "ToyScale") is ToyScale


def test_an_object_whose_hook_fails_can_be_registered_again_when_it_is_mended(registry):
    class Plugin:
        result = None

        @hookimpl
        def jno_lora_wrappers(self):
            return self.result

    plugin = Plugin()
    with pytest.raises(Exception, match="must return an iterable of LoRAWrapper classes"):
        register(plugin)
    assert registered() == ()
    plugin.result = [ToyScale]
    register(plugin)
    assert one(registry, "ToyScale") is ToyScale


def test_a_plugin_object_that_is_registered_twice_is_registered_once(registry):
    class Plugin:
        @hookimpl
        def jno_lora_wrappers(self):
            return [ToyScale]

    plugin = Plugin()
    register(plugin)
    register(plugin)
    assert len(registered()) == 1


def test_a_name_that_a_plugin_has_too_is_ambiguous(site):
    site.plugin("acme-lora", '"ToyScale"')
    register(ToyScale)
    registry = jno.lora._registry.default_registry()
    with pytest.raises(PluginError) as caught:
        registry.resolve("ToyScale")
    assert "acme-lora:ToyScale" in str(caught.value)
    assert "(in-process):ToyScale" in str(caught.value)
    assert one(registry, "(in-process):ToyScale") is ToyScale


def module_of(*classes, fails=False):
    """A plugin module, as a notebook makes it again and again."""

    @hookimpl
    def jno_lora_wrappers():
        return [1] if fails else list(classes)

    return types.SimpleNamespace(__name__="notebook_plugin", jno_lora_wrappers=jno_lora_wrappers)


def test_a_module_that_is_made_again_replaces_the_former(registry):
    register(module_of(ToyScale))
    with pytest.raises(WrapperError):
        register(module_of(fails=True))
    assert one(registry, "ToyScale") is ToyScale  # what is refused replaces nothing
    register(module_of(ToyConv))
    assert one(registry, "ToyConv") is ToyConv
    assert [[w.name for w in record.wrappers] for record in registered()] == [["ToyConv"]]
    registry.refresh()
    assert [[w.name for w in record.wrappers] for record in registered()] == [["ToyConv"]]


def test_a_plugin_that_asks_for_others_while_it_is_asked_can_be_refused_again(site):
    site.install_zoo()
    registry = Registry()

    class Asking:
        @hookimpl
        def jno_lora_wrappers(self):
            registry.defaults()
            return [int]

    plugin = Asking()
    for _ in range(2):  # nothing of it stays
        with pytest.raises(WrapperError):
            registry.register(plugin)
