"""Names and variants of plugins and of this process: never picked, suffixed or overwritten.

The core knows the distributions of this project, and no name of an adapter: the zoo is asked first.
"""

import importlib
import sys
import threading
import types

import pytest

from jno.lora import (
    Net,
    PluginError,
    Registry,
    SelectionError,
    WrapperError,
    apply_lora,
    hookimpl,
    plan_lora,
    register,
    registered,
)
from jno.lora.extending import LazyAdapter

from .asking import at_once, one, run, statuses, wrapped
from .toys import (
    MODEL_LINEARS,
    ToyBlock,
    ToyConv,
    ToyLinear,
    ToyScale,
    UserEmbedding,
    adapters_in,
)

TO_INSTALL = r'[\s\S]*pip install -U "jno-lora\[zoo\]"'


def test_a_name_of_two_plugins_is_an_error_listing_both_with_versions(site, monkeypatch):
    site.plugin("acme-lora", '"Twin", variant="acme"', '"Acme"', version="1.2")
    site.plugin("bolt-lora", '"Twin", variant="bolt"', version="3.4")
    twice = Registry()
    with pytest.raises(PluginError, match="'Twin' is ambiguous") as caught:
        twice.resolve("Twin")
    for distribution, version in [("acme-lora", "1.2"), ("bolt-lora", "3.4")]:
        assert f'wrapper="{distribution}:Twin"  ({version})' in str(caught.value)
    assert twice.clashes() == {"acme-lora:Twin": "bolt-lora", "bolt-lora:Twin": "acme-lora"}
    assert one(twice, "Acme.Lora:Twin").variant == "acme"
    assert one(twice, "bolt") is one(twice, "bolt-lora:Twin")
    assert one(twice, "Acme").__name__ == "Acme"
    for name, near in [("acme-lora:Twn", "acme-lora:Twin"), ("Acne", "Acme"), ("bollt", "bolt")]:
        with pytest.raises(SelectionError, match=rf"called '{name}'.*'{near}'"):
            twice.resolve(name)
    monkeypatch.setenv("JNO_LORA_BLOCK", "bolt-lora")
    twice.refresh()
    assert one(twice, "Twin").variant == "acme"


def test_two_classes_of_one_name_in_one_plugin_have_to_be_passed(site):
    site.plugin("acme-lora", '"Two"', '"Two"')
    registry = Registry()
    for module in ("one", "two"):
        registry.register(type(ToyLinear)("Twin", (ToyLinear,), {"__module__": module}))
    for name in ("Two", "acme-lora:Two", "(in-process):Twin"):
        with pytest.raises(PluginError, match=r"ambiguous.*pass the class itself"):
            registry.resolve(name)


def test_a_class_of_several_plugins_is_one_adapter(site):
    code = """
        Acme, Other = adapter("Acme", variant="acme", auto=True), adapter("Other", variant="acme")
        @hookimpl
        def jno_lora_wrappers():
            return [Acme, Other]
    """
    module = importlib.import_module(site.install("acme-lora", code))
    site.plugin("bolt-lora", '"Unused"')
    site.point_at("bolt-lora", module.__name__)
    registry = Registry()
    registry.register(module)
    assert [*statuses(registry).items()] == [
        *(("acme-lora", "loaded"), ("bolt-lora", "loaded"), ("(in-process)", "loaded"))
    ]
    assert one(registry, "Acme") is one(registry, "bolt-lora:Acme") is module.Acme
    assert registry.auto() == (module.Acme,) and registry.clashes() == {}
    assert registry.resolve("acme") == (module.Acme, module.Other)
    assert registry.provider(module.Acme).distribution == "acme-lora"


def test_a_lazy_class_is_made_once_and_by_the_question_that_needs_it():
    made, together = [], threading.Barrier(2)

    def lazily(name, auto=False):
        def make():
            made.append(name)
            if name == "Slow":
                together.wait(timeout=60)
            return type(ToyLinear)(name, (ToyLinear,), {"__module__": __name__, "auto": auto})

        return LazyAdapter(make, name=name, module=__name__, variant=name[::-1], auto=auto)

    lazy = [lazily("Acme"), lazily("Shift", auto=True), lazily("Slow")]
    registry = Registry(discover=False)
    hook = hookimpl(lambda: lazy, specname="jno_lora_wrappers")
    registry.register(types.SimpleNamespace(hook=hook))
    assert not registry.clashes() and made == []
    assert [cls.__name__ for cls in registry.auto()] == made == ["Shift"]
    acme = one(registry, "emca")
    assert one(registry, "Acme") is acme is registry.provider(acme).cls
    assert made == ["Shift", "Acme"]
    first, second = at_once(*[lambda: one(registry, "Slow")] * 2)
    assert first is second is one(registry, "Slow")


@pytest.mark.parametrize("name", ["DoRALinear", "lora", "LORA_linear"])
@pytest.mark.parametrize("distribution", ["acme-lora", "jno-lora-foundax"])
def test_nobody_takes_a_word_of_the_zoo(site, distribution, name):
    site.install_zoo()
    site.plugin(distribution, f'"{name}", variant="other"', '"Acme"')
    registry = Registry()
    assert registry.provided(distribution, name).name == name  # loaded before the zoo
    assert [cls.__name__ for cls in registry.resolve("lora")] == ["LoRALinear", "LoRAConv"]
    assert one(registry, "DoRALinear") is one(registry, "dora") is one(registry, "DoRA")
    assert registry.defaults() == registry.resolve("lora")
    assert one(registry, "DoRALinear").variant == "dora"
    assert one(registry, f"{distribution}:{name}").variant == "other"
    assert one(registry, "other").__name__ == name
    assert registry.clashes() == {f"{distribution}:{name}": "jno-lora-zoo"}
    assert f'Write `wrapper="{distribution}:{name}"`' in run("doctor", code=1)


@pytest.mark.parametrize("name", ["lora_embedding", "OurEmbedding"])
def test_a_third_party_takes_no_word_of_our_other_plugins(site, name):
    site.plugin("jno-lora-attention", '"OurEmbedding", variant="lora-embedding"')
    site.plugin("acme-lora", f'"{name}", variant="other"')
    registry = Registry()
    assert one(registry, "OurEmbedding") is one(registry, "lora-embedding")
    assert one(registry, "lora_embedding") is one(registry, "OurEmbedding")
    assert [*registry.clashes()] == [f"acme-lora:{name}"]


@pytest.mark.parametrize("name", ["auto", "All", "none", "all_linear"])
def test_a_class_named_by_a_word_of_the_core_has_no_bare_name(site, name):
    site.plugin("acme-lora", f'"{name}"')
    registry = Registry()
    assert one(registry, f"acme-lora:{name}").__name__ == name
    assert registry.clashes() == {f"acme-lora:{name}": "jno-lora itself"}
    with pytest.raises((PluginError, SelectionError)):
        registry.resolve(name)


def test_a_name_that_the_zoo_lacks_belongs_to_who_has_it_or_the_error_says_what_to_install(site):
    site.plugin("acme-lora", '"Acme", variant="acme"', '"DoRALinear", variant="fake"')
    names = ("OFTConv", "jno-lora-zoo:OFTConv")
    registry = Registry()
    assert one(registry, "DoRALinear").variant == "fake"
    for name in ("dora", *names):
        with pytest.raises(PluginError, match=TO_INSTALL):
            registry.resolve(name)
    site.install_zoo()
    assert one(registry, "DoRALinear").variant == "dora"
    with pytest.raises(PluginError, match=f"OFTConv is not available{TO_INSTALL}"):
        registry.zoo_class("OFTConv")
    for name in names:
        with pytest.raises(SelectionError, match=f"called '{name}'{TO_INSTALL}"):
            registry.resolve(name)


def test_the_zoo_alone_names_the_defaults_so_new_methods_need_no_new_core(site):
    defaults = "jno_lora_defaults = ('New',)\nNEW = adapter('New', variant='new')\n"
    code = f"{defaults}@hookimpl\ndef jno_lora_wrappers():\n    return [NEW]\n"
    site.install("acme-lora", code)
    site.plugin("jno-lora-zoo", '"LoRALinear", variant="lora"')  # too old
    registry = Registry()
    with pytest.raises(PluginError, match=f"`wrapper=None` is not available{TO_INSTALL}"):
        registry.defaults()
    module = site.install("jno-lora-zoo", code)
    registry.refresh()
    assert registry.defaults() == (sys.modules[module].NEW,)


def test_classes_of_the_zoo_that_are_registered_by_hand_are_its_defaults(model):
    registry = Registry(discover=False)
    registry.register(type(ToyLinear)("LoRALinear", (ToyLinear,), {"__module__": "mine"}))
    for ask in (registry.defaults, lambda: registry.zoo_class("LoRALinear")):
        with pytest.raises(PluginError, match=r"is not available.*adapter zoo"):
            ask()
    of_zoo = {"__module__": "jno_lora_zoo.adapters"}
    linear = type(ToyLinear)("LoRALinear", (ToyLinear,), of_zoo)
    plugin = types.SimpleNamespace(jno_lora_defaults=("LoRALinear",))
    plugin.wrappers = hookimpl(lambda: [linear], specname="jno_lora_wrappers")
    registry.register(plugin)
    assert registry.defaults() == registry.resolve("LoRALinear") == (linear,)
    assert registry.provided("jno-lora-zoo", "LoRALinear").cls is linear
    assert isinstance(Net(model, registry=registry).lora(2).module.head, linear)


def test_a_class_is_registered_by_a_decorator_and_found_by_its_name(registry, model):
    @register
    class Mine(ToyScale):
        variant = "mine"

    register(Mine)
    assert isinstance(Mine, type) and one(registry, "Mine") is one(registry, "mine") is Mine
    assert one(registry, "(in-process):Mine") is registry.provided(None, "Mine").cls is Mine
    (record,) = registered()
    assert (record.distribution, record.status, record.value) == ("(in-process)", "loaded", "Mine")
    plan = plan_lora(model, 1, wrapper="Mine")
    assert {(row.wrapper, row.distribution) for row in plan.wrapped} == {(Mine, "(in-process)")}
    assert "(in-process)" in str(plan)


def test_a_class_or_module_that_is_made_again_replaces_the_former(registry):
    def cell(*classes, name="ToyLinear"):
        """What a cell of a notebook registers each time when it runs."""
        register(type(ToyLinear)(name, (ToyLinear,), {"__module__": "notebook"}))
        hook = hookimpl(lambda: classes, specname="jno_lora_wrappers")
        return register(types.SimpleNamespace(__name__="notebook_plugin", hook=hook))

    cell(ToyScale)
    first = one(registry, "ToyLinear")
    with pytest.raises(WrapperError):
        cell(3)
    assert one(registry, "ToyScale") is ToyScale  # the module that is refused replaces nothing
    cell(ToyConv)
    assert one(registry, "ToyLinear") is not first
    names = [["ToyLinear"], ["ToyConv"]]
    assert [[w.name for w in record.wrappers] for record in registered()] == names
    registry.refresh()
    assert [[w.name for w in record.wrappers] for record in registered()] == names


def test_a_broken_class_or_hook_is_refused_each_time_and_not_registered(registry):
    class Broken(ToyLinear):
        adapter_fields = ("nothing",)

    misspelled = hookimpl(lambda: [ToyScale], specname="jno_lora_wraperss")
    for _ in range(2):
        with pytest.raises(WrapperError, match=r"(?s)Broken is not.*names 'nothing'"):
            register(Broken)
        with pytest.raises(PluginError, match=r"jno_lora_wraperss[^$]*`jno_lora_wrappers\(\)`"):
            register(types.SimpleNamespace(__name__="plugin", hook=misspelled))
    assert registered() == ()


def test_an_object_with_hooks_is_a_plugin_which_may_ask_for_other_plugins(site):
    site.install_zoo()
    registry = Registry()

    class Plugin:
        @hookimpl
        def jno_lora_wrappers(self):
            registry.defaults()
            return iter([ToyScale, ToyConv, ToyScale])

        @hookimpl(optionalhook=True)
        def jno_lora_of_tomorrow(self):
            raise AssertionError

    plugin = Plugin()
    assert registry.register(plugin) is registry.register(plugin) is plugin
    assert one(registry, "ToyConv") is ToyConv
    assert [len(record.wrappers) for record in registry.loaded()] == [3, 2]


def test_a_registry_of_ones_own_takes_the_place_of_the_installed_plugins(model, registry, getkey):
    own = Registry(discover=False)
    own.register(ToyScale)
    adapted = apply_lora(model, 1, key=getkey(), wrapper="ToyScale", registry=own)
    net = Net(model, registry=own).lora(1, wrapper="ToyScale")
    assert adapters_in(adapted).keys() == adapters_in(net.module).keys() == set(MODEL_LINEARS)
    assert {row.distribution for row in net.summary()} == {"(in-process)"}
    with pytest.raises(SelectionError, match="No adapter or variant is called 'ToyScale'"):
        Net(model).lora(1, wrapper="ToyScale")


class FamilyOne(ToyLinear):
    variant = "twins"


class FamilyTwo(ToyLinear):
    variant = "twins"


class OfEmbeddings(UserEmbedding):
    variant = "Tw-ins"


class OfBlocks(ToyBlock):
    variant = "twins"


class Chooser:
    """A plugin object that chooses, and remembers what it was asked."""

    def __init__(self, choice):
        self.choice = choice
        self.asked = []

    @hookimpl
    def jno_lora_select(self, path, leaf, candidates):
        self.asked.append((path, type(leaf).__name__, tuple(candidates)))
        return self.choice


def test_a_variant_selects_every_wrapper_of_the_family_whatever_its_spelling(model, registry):
    chooser = Chooser(FamilyTwo)
    for item in (FamilyOne, OfEmbeddings, ToyScale, chooser):
        register(item)
    expected = {"embedding": OfEmbeddings, **dict.fromkeys(MODEL_LINEARS, FamilyOne)}
    for spelling in ("twins", "t-wins", "TW_INS"):
        assert wrapped(model, 1, wrapper=spelling) == expected
    assert set(wrapped(model, 1, wrapper=["ToyScale", FamilyOne]).values()) == {ToyScale}
    assert wrapped(model, 1, wrapper=["twins", ToyScale]) == expected
    assert chooser.asked == []


def test_a_tie_is_an_error_naming_the_layer_and_both_unless_a_hook_chooses(model, registry):
    for item in (FamilyOne, FamilyTwo, Chooser(None)):
        register(item)
    with pytest.raises(SelectionError) as caught:
        wrapped(model, 1, wrapper="twins")
    message = str(caught.value)
    assert "claim 'encoder/0', a Linear" in message and "`jno_lora_select`" in message
    for name in ("FamilyOne", "FamilyTwo"):
        assert f'{name} (wrapper="(in-process):{name}")' in message
    chooser = register(Chooser(FamilyTwo))
    assert set(wrapped(model, 1, wrapper="twins").values()) == {FamilyTwo}
    assert ("head", "Linear", (FamilyOne, FamilyTwo)) in chooser.asked


def test_an_adapter_of_a_container_does_not_silently_hide_one_of_equal_priority(blocks, registry):
    chooser = Chooser(None)
    for item in (FamilyOne, OfBlocks, chooser):
        register(item)
    message = r"(?s)claim 'blocks/0', a Block:.*OfBlocks.*FamilyOne.*for 'blocks/0/up'"
    with pytest.raises(SelectionError, match=message):
        wrapped(blocks, 1, wrapper="twins")
    assert chooser.asked[0] == ("blocks/0", "Block", (OfBlocks, FamilyOne))
    for choice, paths in [(OfBlocks, [""]), (FamilyOne, ["/up", "/down"])]:
        chooser.choice = choice
        expected = {f"blocks/{n}{path}": choice for n in (0, 1) for path in paths}
        assert wrapped(blocks, 1, wrapper="twins") == expected
