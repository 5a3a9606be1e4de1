"""Names of plugins: never picked, suffixed or overwritten."""

import importlib
import sys
import textwrap
import types

import pytest

import jno.lora
from jno.lora import (
    JnoLoraWarning,
    PluginError,
    Registry,
    SelectionError,
    hookimpl,
    refresh,
    register,
    registered,
)

from .asking import at_once, one, statuses
from .toys import ToyLinear, ToyScale

# --- two plugins, one name


@pytest.fixture
def twice(site):
    site.plugin("acme-lora", '"Twin", variant="acme"', '"Acme"', version="1.2")
    site.plugin("bolt-lora", '"Twin", variant="bolt"', version="3.4")
    return Registry()


def test_a_name_of_two_plugins_is_an_error_listing_both_with_versions(twice):
    with pytest.raises(PluginError) as caught:
        twice.resolve("Twin")
    message = str(caught.value)
    assert "'Twin' is ambiguous" in message
    assert 'wrapper="acme-lora:Twin"  (1.2)' in message
    assert 'wrapper="bolt-lora:Twin"  (3.4)' in message


@pytest.mark.parametrize("spelling", ["acme-lora", "acme_lora", "Acme.Lora"])
def test_both_are_usable_by_distribution_and_name(twice, spelling):
    assert one(twice, f"{spelling}:Twin").variant == "acme"
    assert one(twice, "bolt-lora:Twin").variant == "bolt"


def test_other_names_and_variants_of_the_two_still_work(twice):
    assert one(twice, "Acme").__name__ == "Acme"
    assert one(twice, "bolt") is one(twice, "bolt-lora:Twin")


def test_two_classes_of_one_name_in_one_plugin_have_to_be_passed(site):
    site.install(
        "acme-lora",
        "@hookimpl\ndef jno_lora_wrappers():\n    return [adapter('Two'), adapter('Two')]\n",
    )
    registry = Registry()
    for name in ("Two", "acme-lora:Two"):
        with pytest.raises(PluginError, match=r"ambiguous.*pass the class itself"):
            registry.resolve(name)


def test_the_registry_says_which_names_clash(twice):
    twice.records()
    assert twice.clashes() == {"acme-lora:Twin": "bolt-lora", "bolt-lora:Twin": "acme-lora"}


def test_a_conflict_ends_when_one_of_the_two_is_blocked(twice, monkeypatch):
    monkeypatch.setenv("JNO_LORA_BLOCK", "bolt-lora")
    registry = Registry()
    assert statuses(registry) == {"acme-lora": "loaded", "bolt-lora": "blocked"}
    assert one(registry, "Twin").variant == "acme"


def test_one_class_from_two_plugins_is_one_adapter(site):
    module = site.plugin("acme-lora", '"Acme", variant="acme", auto=True')
    site.install(
        "bolt-lora",
        f"import {module}\n@hookimpl\ndef jno_lora_wrappers():\n    return {module}.CLASSES\n",
    )
    registry = Registry()
    assert statuses(registry) == {"acme-lora": "loaded", "bolt-lora": "loaded"}
    assert len(registry.resolve("Acme")) == len(registry.resolve("acme")) == 1
    assert len(registry.auto()) == 1
    assert registry.provider(one(registry, "Acme")).distribution == "acme-lora"
    assert one(registry, "bolt-lora:Acme") is one(registry, "Acme")


def test_one_class_twice_in_one_plugin_is_one_adapter(site):
    site.install(
        "acme-lora",
        "Acme = adapter('Acme')\n@hookimpl\ndef jno_lora_wrappers():\n    return [Acme, Acme]\n",
    )
    (record,) = Registry().records()
    assert record.status == "loaded" and len(record.wrappers) == 1


LAZY = """
    import threading
    from jno.lora.parts import LazyAdapter
    MADE, TOGETHER = [], threading.Barrier(2)

    def lazily(name, variant, auto=False, **body):
        def make():
            MADE.append(name)
            cls = adapter(name, variant, auto)
            for attribute, value in body.items():
                setattr(cls, attribute, value)
            if name == "Slow":
                TOGETHER.wait(timeout=60)
            return cls
        return LazyAdapter(make, name=name, module=__name__, variant=variant, auto=auto)

    LAZY = [lazily("Acme", "acme"), lazily("Shift", "shift", True), lazily("Slow", "slow")]

    @hookimpl
    def jno_lora_wrappers():
        return LAZY
"""


def test_a_lazy_class_is_made_by_the_question_that_needs_it(site):
    module = site.install("jno-lora-attention", textwrap.dedent(LAZY))
    site.plugin("bolt-lora", '"Bolt", variant="acme"')
    registry = Registry()
    names = [wrapper.name for record in registry.records() for wrapper in record.wrappers]
    assert names == ["Acme", "Shift", "Slow", "Bolt"]
    assert not registry.clashes() and one(registry, "Bolt").__name__ == "Bolt"
    made = sys.modules[module].MADE
    assert made == []
    assert [cls.__name__ for cls in registry.auto()] == made == ["Shift"]
    acme, bolt = registry.resolve("acme")
    assert made == ["Shift", "Acme"]
    assert one(registry, "Acme") is one(registry, "jno-lora-attention:Acme") is acme
    assert registry.provider(acme).distribution == "jno-lora-attention"
    assert registry.provider(bolt).distribution == "bolt-lora"
    assert made == ["Shift", "Acme"]


def test_threads_that_name_a_lazy_class_at_once_get_the_same_class(site):
    site.install("jno-lora-attention", textwrap.dedent(LAZY))
    registry = Registry()
    registry.records()
    first, second = at_once(*[lambda: one(registry, "slow")] * 2)
    assert first is second is one(registry, "Slow")


CHOOSER = """
    CALLS = []
    Acme, Other = adapter("Acme", variant="acme"), adapter("Other", variant="acme")
    @hookimpl
    def jno_lora_wrappers():
        CALLS.append(1)
        if len(CALLS) in BROKEN:
            raise RuntimeError("asked too often")
        return [Acme, Other]
    @hookimpl
    def jno_lora_select(path, leaf, candidates):
        return Other
"""


@pytest.fixture
def same_module(site):
    """Two distributions that name one module."""

    def install(broken=()):
        module = site.install("acme-lora", f"BROKEN = {broken!r}\n" + textwrap.dedent(CHOOSER))
        site.plugin("bolt-lora", '"Unused"')
        site.point_at("bolt-lora", module)
        return module

    return install


def test_two_distributions_that_name_one_module_have_its_hooks_once(same_module):
    module = same_module()
    registry = Registry()
    assert statuses(registry) == {"acme-lora": "loaded", "bolt-lora": "loaded"}
    assert one(registry, "Acme") is one(registry, "bolt-lora:Acme")
    acme, other = registry.resolve("acme")
    assert registry.select("head", None, [acme, other]) is other
    assert len(sys.modules[module].CALLS) == 2


def test_a_module_that_fails_for_the_second_distribution_keeps_the_hooks_of_the_first(same_module):
    same_module(broken=(2,))
    registry = Registry()
    with pytest.warns(JnoLoraWarning, match=r"left out: bolt-lora .*RuntimeError: asked too"):
        assert statuses(registry) == {"acme-lora": "loaded", "bolt-lora": "failed"}
    acme, other = registry.resolve("acme")
    assert registry.select("head", None, [acme, other]) is other


def test_a_module_may_be_registered_and_installed(same_module):
    module = importlib.import_module(same_module())
    registry = Registry()
    registry.register(module)
    assert registry.resolve("Acme") == (module.Acme,)
    assert statuses(registry) == {
        "acme-lora": "loaded",
        "bolt-lora": "loaded",
        "(in-process)": "loaded",
    }
    assert registry.select("head", None, [module.Acme, module.Other]) is module.Other
    registry.refresh()
    assert registry.select("head", None, [module.Acme, module.Other]) is module.Other


# --- unknown names


def test_an_unknown_qualified_name_lists_the_nearest(twice):
    with pytest.raises(SelectionError, match="called 'acme-lora:Twn'") as caught:
        twice.resolve("acme-lora:Twn")
    assert "'acme-lora:Twin'" in str(caught.value)


def test_an_unknown_distribution_is_an_unknown_name(twice):
    with pytest.raises(SelectionError, match="called 'nobody:Twin'"):
        twice.resolve("nobody:Twin")


# --- refresh


def test_a_plugin_installed_later_is_found_after_a_refresh(site):
    site.plugin("acme-lora", '"Acme"')
    assert len(registered()) == 1
    site.plugin("bolt-lora", '"Bolt"')
    assert len(registered()) == 1
    refresh()
    assert [record.distribution for record in registered()] == ["acme-lora", "bolt-lora"]


def test_a_refresh_reads_the_environment_again(site, monkeypatch):
    site.plugin("acme-lora", '"Acme"')
    monkeypatch.setenv("JNO_LORA_BLOCK", "acme-lora")
    assert [record.status for record in registered()] == ["blocked"]
    monkeypatch.delenv("JNO_LORA_BLOCK")
    refresh()
    assert [record.status for record in registered()] == ["loaded"]


def test_a_refresh_keeps_what_was_registered_in_the_process(site):
    chooser = types.SimpleNamespace(jno_lora_select=hookimpl(choose_last), __name__="chooser")
    register(ToyScale)
    register(chooser)
    site.plugin("acme-lora", '"Acme"')
    refresh()
    assert [record.value for record in registered()][1:] == ["ToyScale", "chooser"]
    registry = jno.lora._registry.default_registry()
    assert one(registry, "ToyScale") is ToyScale
    assert registry.select("head", None, [ToyLinear, ToyScale]) is ToyScale


def choose_last(path, leaf, candidates):
    return candidates[-1]


choose_last.__name__ = "jno_lora_select"
