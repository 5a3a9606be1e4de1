"""The zoo's names are its own, whoever else is installed, and whoever looks for what.

The core knows the distributions of this project, and no name of an adapter: the zoo is asked first.
"""

import sys
import types

import pytest

from jno.lora import (
    Net,
    PluginError,
    Registry,
    SelectionError,
    hookimpl,
)

from .asking import one, statuses
from .toys import ToyConv, ToyLinear

# --- reserved names


def test_a_third_party_cannot_take_a_name_of_the_zoo(site):
    site.install_zoo()
    site.plugin("acme-lora", '"DoRALinear", variant="fake"', '"Acme"')
    registry = Registry()
    assert one(registry, "DoRALinear").variant == "dora"
    assert one(registry, "acme-lora:DoRALinear").variant == "fake"
    assert registry.clashes() == {"acme-lora:DoRALinear": "jno-lora-zoo"}
    assert one(registry, "Acme")


def test_a_third_party_that_was_loaded_first_cannot_take_a_name_of_the_zoo_either(site):
    acme = site.plugin("acme-lora", '"DoRALinear", variant="fake"')
    zoo = site.install_zoo()
    registry = Registry()
    registry.provided("acme-lora", "DoRALinear")
    assert acme in sys.modules and zoo not in sys.modules
    assert one(registry, "DoRALinear").variant == "dora"


@pytest.mark.parametrize("ask_first", [Registry.records, Registry.defaults])
def test_a_distribution_that_calls_itself_first_party_cannot_take_one_either(site, ask_first):
    site.install_zoo()
    site.plugin("jno-lora-foundax", '"LoRALinear", variant="fake"')
    registry = Registry()
    ask_first(registry)
    linear, _ = registry.defaults()
    assert linear.variant == one(registry, "LoRALinear").variant == "lora"
    assert one(registry, "jno-lora-foundax:LoRALinear").variant == "fake"
    assert registry.clashes() == {"jno-lora-foundax:LoRALinear": "jno-lora-zoo"}


def test_without_the_zoo_a_name_belongs_to_who_has_it_until_the_zoo_is_installed(site):
    site.plugin("acme-lora", '"DoRALinear", variant="fake"')
    registry = Registry()
    assert one(registry, "DoRALinear").variant == "fake"
    with pytest.raises(PluginError, match=r"DoRALinear is not available.*adapter zoo"):
        registry.zoo_class("DoRALinear")
    site.install_zoo()
    assert one(registry, "DoRALinear").variant == "dora"
    assert one(registry, "acme-lora:DoRALinear").variant == "fake"


@pytest.mark.parametrize("name", ["dora", "LoRA-FA", "OFTConv", "jno-lora-zoo:OFTConv"])
def test_a_name_of_the_zoo_says_what_to_install(site, name):
    site.plugin("acme-lora", '"Acme", variant="acme"')
    with pytest.raises(PluginError, match=r'(?s)adapter zoo.*pip install -U "jno-lora\[zoo\]"'):
        Registry().resolve(name)


def test_a_variant_of_a_blocked_zoo_says_what_blocks_it(site, monkeypatch):
    site.install_zoo()
    monkeypatch.setenv("JNO_LORA_BLOCK", "jno-lora-zoo")
    with pytest.raises(PluginError, match=r"(?s)called 'dora'.*zoo 1.0 .*is blocked: .*LORA_BLOCK"):
        Registry().resolve("dora")


def test_a_zoo_that_lacks_a_name_is_to_be_upgraded(site):
    site.install_zoo()
    with pytest.raises(
        PluginError, match=r'(?s)OFTConv is not available.*later version.*-U "jno-lora\[zoo'
    ):
        Registry().zoo_class("OFTConv")
    for name in ("OFTConv", "oft", "jno-lora-zoo:OFTConv"):
        unknown = rf"(?s)No adapter or variant is called '{name}'.*install -U .jno-lora.zoo"
        with pytest.raises(SelectionError, match=unknown):
            Registry().resolve(name)


def test_a_zoo_without_defaults_is_to_be_upgraded(site):
    site.plugin("jno-lora-zoo", '"LoRALinear", variant="lora"')
    with pytest.raises(PluginError, match=r'(?s)`wrapper=None` is not av.*-U "jno-lora\[zoo'):
        Registry().defaults()


@pytest.mark.parametrize("distribution", ["acme-lora", "jno-lora-foundax"])
def test_the_zoo_alone_names_the_defaults(site, distribution):
    site.install_zoo()
    own = "jno_lora_defaults = ('Own',)\n@hookimpl\ndef jno_lora_wrappers():\n"
    site.install(distribution, f"{own}    return [adapter('Own')]\n")
    registry = Registry()
    registry.records()
    assert [cls.__name__ for cls in registry.defaults()] == ["LoRALinear", "LoRAConv"]


def test_a_new_method_and_new_defaults_need_no_new_core(site):
    code = "jno_lora_defaults = ('NewLinear',)\nNEW = adapter('NewLinear', variant='new')\n"
    site.install("jno-lora-zoo", f"{code}@hookimpl\ndef jno_lora_wrappers():\n    return [NEW]\n")
    (new,) = Registry().defaults()
    from jno.lora import NewLinear

    assert NewLinear.variant == new.variant == "new"


def test_a_variant_that_not_every_collection_has_is_an_unknown_name(site):
    with pytest.raises(SelectionError, match="is called 'lora-in-norm'"):
        Registry().resolve("lora-in-norm")  # `to_lora` asks for it


# --- a registry that looks for nothing


def of_the_zoo(base, name):
    return type(base)(name, (base,), {"__module__": "jno_lora_zoo.adapters"})


def test_classes_of_the_zoo_that_are_registered_by_hand_are_its_defaults(site, model):
    registry = Registry(discover=False)
    linear, conv = of_the_zoo(ToyLinear, "LoRALinear"), of_the_zoo(ToyConv, "LoRAConv")
    plugin = types.SimpleNamespace(jno_lora_defaults=("LoRALinear", "LoRAConv"))
    plugin.wrappers = hookimpl(lambda: [linear, conv], specname="jno_lora_wrappers")
    registry.register(plugin)
    assert registry.defaults() == (linear, conv)
    assert registry.resolve("LoRALinear") == (linear,)
    assert statuses(registry) == {"(in-process)": "loaded"}
    assert registry.provided("jno-lora-zoo", "LoRALinear").cls is linear
    assert isinstance(Net(model, registry=registry).lora(2).module.head, linear)


def test_another_class_with_a_reserved_name_is_not_a_default(site):
    registry = Registry(discover=False)
    registry.register(type(ToyLinear)("LoRALinear", (ToyLinear,), {"__module__": "mine"}))
    with pytest.raises(PluginError, match=r"`wrapper=None` is not available.*adapter zoo"):
        registry.defaults()
    with pytest.raises(PluginError, match=r"LoRALinear is not available.*adapter zoo"):
        registry.zoo_class("LoRALinear")


def test_another_first_party_name_wins_over_a_third_party(site):
    site.plugin("jno-lora-attention", '"LoRAEmbedding", variant="ours"')
    site.plugin("acme-lora", '"LoRAEmbedding", variant="theirs"')
    registry = Registry()
    assert one(registry, "LoRAEmbedding").variant == "ours"
    assert one(registry, "acme-lora:LoRAEmbedding").variant == "theirs"
