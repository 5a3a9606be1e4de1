"""Names: never picked, suffixed or overwritten; what is registered in the process."""

import importlib
import sys
import textwrap
import types

import pytest

import jno.lora
from jno.lora import (
    JnoLoraWarning,
    Net,
    PluginError,
    Registry,
    SelectionError,
    WrapperError,
    hookimpl,
    plan_lora,
    refresh,
    register,
    registered,
)

from .toys import MODEL_LINEARS, ToyConv, ToyLinear, ToyScale


def statuses(registry):
    return {record.distribution: record.status for record in registry.records()}


def one(registry, name):
    (cls,) = registry.resolve(name)
    return cls


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


def test_the_records_say_that_there_is_a_conflict_and_what_to_write(twice):
    assert statuses(twice) == {"acme-lora": "conflict", "bolt-lora": "conflict"}
    error = twice.records()[0].error
    assert isinstance(error, PluginError)
    assert "Twin" in str(error) and '"acme-lora:Twin"' in str(error)


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
    with pytest.warns(JnoLoraWarning, match=r"bolt-lora .* left out: RuntimeError: asked too"):
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


# --- reserved names


def test_a_third_party_cannot_take_a_name_of_the_zoo(site):
    site.install_zoo()
    site.plugin("acme-lora", '"DoRALinear", variant="fake"', '"Acme"')
    registry = Registry()
    assert one(registry, "DoRALinear").variant == "dora"
    assert one(registry, "acme-lora:DoRALinear").variant == "fake"
    assert statuses(registry) == {"jno-lora-zoo": "loaded", "acme-lora": "conflict"}
    assert one(registry, "Acme")


@pytest.mark.parametrize("ask_first", [Registry.records, Registry.defaults])
def test_a_distribution_that_calls_itself_first_party_cannot_take_one_either(site, ask_first):
    site.install_zoo()
    site.plugin("jno-lora-recurrent", '"LoRALinear", variant="fake"')
    registry = Registry()
    ask_first(registry)
    linear, _ = registry.defaults()
    assert linear.variant == one(registry, "LoRALinear").variant == "lora"
    assert one(registry, "jno-lora-recurrent:LoRALinear").variant == "fake"
    assert statuses(registry) == {"jno-lora-zoo": "loaded", "jno-lora-recurrent": "conflict"}


def test_a_name_of_the_zoo_stays_reserved_while_the_zoo_is_not_installed(site):
    site.plugin("acme-lora", '"OFTConv", variant="fake"')
    registry = Registry()
    with pytest.raises(PluginError, match=r"OFTConv is part of the adapter zoo.*not installed"):
        registry.resolve("OFTConv")
    assert one(registry, "acme-lora:OFTConv").variant == "fake"


@pytest.mark.parametrize("name", ["dora", "LoRA-FA", "rs_lora", "jno-lora-zoo:OFTConv"])
def test_what_the_zoo_provides_is_an_error_that_says_what_to_install(site, name):
    site.plugin("acme-lora", '"Acme", variant="acme"')
    with pytest.raises(PluginError, match=r'(?s)adapter zoo.*pip install "jno-lora\[zoo\]"'):
        Registry().resolve(name)


def test_a_variant_of_a_blocked_zoo_says_what_blocks_it(site, monkeypatch):
    site.install_zoo()
    monkeypatch.setenv("JNO_LORA_BLOCK", "jno-lora-zoo")
    with pytest.raises(PluginError, match=r"dora is not available: .*JNO_LORA_BLOCK"):
        Registry().resolve("dora")


def test_a_zoo_that_lacks_a_name_is_to_be_upgraded(site):
    site.install_zoo()
    with pytest.raises(PluginError, match=r"has no OFTConv. .*\n.*install -U jno-lora-zoo"):
        Registry().resolve("OFTConv")
    with pytest.raises(SelectionError, match="No adapter or variant is called 'oft'"):
        Registry().resolve("oft")


def test_a_variant_that_not_every_collection_has_is_an_unknown_name(site):
    with pytest.raises(SelectionError, match="is called 'lora-in-norm'"):
        Registry().resolve("lora-in-norm")  # `to_lora` asks for it


# --- a registry that looks for nothing


def of_the_zoo(base, name):
    return type(base)(name, (base,), {"__module__": "jno_lora_zoo.adapters"})


def test_classes_of_the_zoo_that_are_registered_by_hand_are_its_defaults(site, model):
    registry = Registry(discover=False)
    linear, conv = of_the_zoo(ToyLinear, "LoRALinear"), of_the_zoo(ToyConv, "LoRAConv")
    registry.register(linear)
    registry.register(conv)
    assert registry.defaults() == (linear, conv)
    assert registry.resolve("LoRALinear") == (linear,)
    assert statuses(registry) == {"(in-process)": "loaded"}
    assert registry.provided("jno-lora-zoo", "LoRALinear").cls is linear
    assert isinstance(Net(model, registry=registry).lora(2).module.head, linear)


def test_another_class_of_a_reserved_name_is_no_default(site):
    registry = Registry(discover=False)
    registry.register(type(ToyLinear)("LoRALinear", (ToyLinear,), {"__module__": "mine"}))
    with pytest.raises(PluginError, match="LoRALinear is part of the adapter zoo"):
        registry.defaults()


@pytest.mark.parametrize("name", ["LoRALinear", "dora"])
def test_without_discovery_nothing_is_said_to_be_missing_from_the_installation(site, name):
    site.install_zoo()
    with pytest.raises(PluginError, match=r"discover=False[^$]*registry.register\(") as caught:
        Registry(discover=False).resolve(name)
    assert "installed" not in str(caught.value)


def test_the_record_says_that_a_reserved_name_needs_the_long_form(site):
    site.plugin("acme-lora", '"OFTConv"')
    (record,) = Registry().records()
    assert record.status == "conflict"
    assert '"acme-lora:OFTConv"' in str(record.error)


def test_another_first_party_name_wins_over_a_third_party(site):
    site.plugin("jno-lora-embedding", '"LoRAEmbedding", variant="ours"')
    site.plugin("acme-lora", '"LoRAEmbedding", variant="theirs"')
    registry = Registry()
    assert one(registry, "LoRAEmbedding").variant == "ours"
    assert one(registry, "acme-lora:LoRAEmbedding").variant == "theirs"


# --- unknown names


def test_an_unknown_qualified_name_lists_the_nearest(twice):
    with pytest.raises(SelectionError, match="called 'acme-lora:Twn'") as caught:
        twice.resolve("acme-lora:Twn")
    assert "'acme-lora:Twin'" in str(caught.value)


def test_an_unknown_distribution_is_an_unknown_name(twice):
    with pytest.raises(SelectionError, match="called 'nobody:Twin'"):
        twice.resolve("nobody:Twin")


# --- refresh


def test_what_is_installed_later_is_found_after_a_refresh(site):
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


# --- in this process


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
    rows = plan_lora(model, 1, wrappers="Notebook").wrapped
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
        (Misspelled(), r"a hook 'jno_lora_wraperss'.* did you mean 'jno_lora_wrappers'\?"),
        (TooManyArguments(), r"`jno_lora_select\(path, leaf, candidates\)`[^$]*'model'"),
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
