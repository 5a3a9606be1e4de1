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

from .asking import at_once, names, one, run, statuses, wrapped
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


def test_a_name_of_two_third_parties_means_both_until_it_has_a_distribution(site, monkeypatch):
    site.plugin("acme-lora", '"Twin", variant="acme"', '"Acme"', version="1.2")
    site.plugin("bolt-lora", '"Twin", variant="bolt"', version="3.4")
    twice = Registry()
    acme, bolt = twice.resolve("Twin")
    assert (acme.variant, bolt.variant) == ("acme", "bolt")
    assert one(twice, "Acme.Lora:Twin") is acme
    assert one(twice, "bolt") is one(twice, "bolt-lora:Twin") is bolt
    text = run("doctor", code=1)
    for name, owner in [("acme-lora:Twin", "bolt-lora"), ("bolt-lora:Twin", "acme-lora")]:
        assert f'The name of {name} also belongs to {owner}. Write `wrapper="{name}"`' in text
    for name, near in [("Acne", "'Acme'"), ("bollt", "'bolt'"), ("acme-lora:Twn", "it has Twin")]:
        with pytest.raises(SelectionError, match=rf"{name}.*{near}"):
            twice.resolve(name)
    monkeypatch.setenv("JNO_LORA_BLOCK", "bolt-lora")
    twice.refresh()
    assert one(twice, "Twin").variant == "acme"


def test_two_classes_of_one_name_in_one_plugin_have_to_be_passed(site):
    site.plugin("acme-lora", '"Two"', '"Two"')
    registry = Registry()
    for module in ("one", "two"):
        registry.register(type(ToyLinear)("Twin", (ToyLinear,), {"__module__": module}))
    for name in ("acme-lora:Two", "(in-process):Twin"):
        with pytest.raises(PluginError, match=r"has 2 adapters called .*pass the class itself"):
            registry.resolve(name)


def test_a_word_is_one_family_as_a_name_and_as_a_variant_however_it_is_spelled(site):
    site.plugin("jno-lora-haliax", '"OurEmb", variant="lora-embedding"', '"OurNorm", "o-n"')
    site.plugin("acme-lora", '"Acme", variant="LoRA_Embedding"', '"Other", variant="our-norm"')
    site.plugin("jno-lora-zoo", '"LoRAEmbedding", variant="lora-embedding"')
    registry = Registry()
    # A variant, which plugins of lower precedence extend, although it is also a name.
    expected = ["LoRAEmbedding", "OurEmb", "Acme"]
    for word in ("LoRAEmbedding", "lora-embedding", "LORA_embedding"):
        assert [cls.__name__ for cls in registry.resolve(word)] == expected
    # A name, which nobody extends by a variant.
    assert one(registry, "OurNorm") is one(registry, "our_norm") is one(registry, "o-n")
    for name in ("jno-lora-zoo:LoRAEmbedding", "acme-lora:Other"):
        assert one(registry, name).__name__ == name.partition(":")[2]


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
    assert one(registry, "acme-lora:Acme") is one(registry, "bolt-lora:Acme") is module.Acme
    assert registry.auto() == (module.Acme,)
    assert registry.resolve("acme") == registry.resolve("Acme") == (module.Acme, module.Other)
    assert "also belongs to" not in run("doctor", code=1)  # without the zoo
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
    assert len(registry.records()[0].wrappers) == 3 and made == []
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
    owned = f"The name of {distribution}:{name} also belongs to jno-lora-zoo. "
    assert f'{owned}Write `wrapper="{distribution}:{name}"`' in run("doctor", code=1)


@pytest.mark.parametrize("name", ["lora_embedding", "OurEmbedding"])
def test_a_third_party_takes_no_word_of_our_other_plugins(site, name):
    site.plugin("jno-lora-attention", '"OurEmbedding", variant="lora-embedding"')
    site.plugin("acme-lora", f'"{name}", variant="other"')
    registry = Registry()
    assert one(registry, "OurEmbedding") is one(registry, "lora-embedding")
    assert one(registry, "lora_embedding") is one(registry, "OurEmbedding")
    assert run("doctor", code=1).count("also belongs to jno-lora-attention") == 1


def test_a_name_that_the_zoo_lacks_belongs_to_who_has_it_or_the_error_says_what_to_install(site):
    site.plugin("acme-lora", '"Acme", variant="acme"', '"DoRALinear", variant="fake"')
    lacking = ("OFTConv", "jno-lora-zoo:OFTConv")
    registry = Registry()
    assert one(registry, "DoRALinear").variant == "fake"
    for name in ("dora", *lacking):
        with pytest.raises(PluginError, match=TO_INSTALL):
            registry.resolve(name)
    site.install_zoo()
    assert one(registry, "DoRALinear").variant == "dora"
    with pytest.raises(SelectionError, match=f"OFTConv is not available{TO_INSTALL}"):
        registry.zoo_class("OFTConv")
    for name in lacking:
        with pytest.raises(SelectionError, match=f"{name}{TO_INSTALL}"):
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
    assert {row.distribution for row in plan_lora(model, 2, registry=registry).wrapped} == {
        "jno-lora-zoo"
    }
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
    expected = [["ToyLinear"], ["ToyConv"]]
    assert [[w.name for w in record.wrappers] for record in registered()] == expected
    registry.refresh()
    assert [[w.name for w in record.wrappers] for record in registered()] == expected


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


class OfEmbeddings(UserEmbedding):
    variant = "Tw-ins"


class OfBlocks(ToyBlock):
    variant = "twins"


def test_a_variant_selects_every_wrapper_of_the_family_whatever_its_spelling(model, registry):
    for item in (FamilyOne, OfEmbeddings, ToyScale):
        register(item)
    expected = {"embedding": OfEmbeddings, **dict.fromkeys(MODEL_LINEARS, FamilyOne)}
    for spelling in ("twins", "t-wins", "TW_INS"):
        assert wrapped(model, 1, wrapper=spelling) == expected
    assert set(wrapped(model, 1, wrapper=["ToyScale", FamilyOne]).values()) == {ToyScale}
    assert wrapped(model, 1, wrapper=["twins", ToyScale]) == expected


def test_a_tie_is_an_error_that_names_the_layer_and_how_to_name_each(site, model):
    for name in ("acme-lora", "bolt-lora"):
        site.plugin(name, '"Twin", variant="twins"')
    for word in ("twins", "Twin"):
        with pytest.raises(SelectionError) as caught:
            names(model, 1, wrapper=word)
        message = str(caught.value)
        assert "claim 'encoder/0', a Linear" in message
        for distribution in ("acme-lora", "bolt-lora"):
            assert f"wrapper=\"{distribution}:Twin\", for 'encoder/0'" in message
    assert set(names(model, 1, wrapper="bolt-lora:Twin")) == set(MODEL_LINEARS)
    both = ["bolt-lora:Twin", "acme-lora:Twin"]
    assert {row.distribution for row in plan_lora(model, 1, wrapper=both).wrapped} == {"bolt-lora"}


def test_an_adapter_of_a_container_does_not_silently_hide_one_of_equal_priority(blocks, registry):
    for item in (FamilyOne, OfBlocks):
        register(item)
    message = r"(?s)claim 'blocks/0', a Block:.*OfBlocks.*FamilyOne.*for 'blocks/0/up'"
    with pytest.raises(SelectionError, match=message):
        wrapped(blocks, 1, wrapper="twins")
    for order, paths in [([OfBlocks, "twins"], [""]), ([FamilyOne, "twins"], ["/up", "/down"])]:
        expected = {f"blocks/{n}{path}": order[0] for n in (0, 1) for path in paths}
        assert wrapped(blocks, 1, wrapper=order) == expected
