"""Installed plugins: found in a fixed order, loaded lazily, once, and each on its own."""

import builtins
import importlib
import sys
import threading

import pytest

from jno.lora import Net, PluginError, Registry, apply_lora, plan_lora, registered

from .toys import MODEL_LINEARS, ToyLinear, UserEmbedding


def order(registry):
    return [(record.distribution, record.name) for record in registry.records()]


def names(registry):
    return [w.name for record in registry.records() for w in record.wrappers]


def test_without_plugins_nothing_is_found(site):
    assert Registry().records() == ()


def test_a_record_says_what_was_found(site):
    module = site.plugin("acme-lora", '"Acme", variant="acme"', version="2.3")
    (record,) = Registry().records()
    assert (record.name, record.distribution, record.version) == ("main", "acme-lora", "2.3")
    assert (record.value, record.status, record.error) == (module, "loaded", None)
    assert record.seconds > 0
    (wrapper,) = record.wrappers
    assert (wrapper.name, wrapper.qualified_name) == ("Acme", "acme-lora:Acme")
    assert (wrapper.distribution, wrapper.version) == ("acme-lora", "2.3")


def test_the_first_party_comes_first_then_distribution_then_entry_point(site):
    empty = "@hookimpl\ndef jno_lora_wrappers():\n    return []\n"
    site.install("Zebra_Lora", empty, entry="b", entries={"a": empty})
    site.install("acme.lora", empty)
    site.install("jno-lora-zoo", empty, entry="zoo")
    site.install("jno_lora_attention", empty)
    assert order(Registry()) == [
        ("jno-lora-attention", "main"),
        ("jno-lora-zoo", "zoo"),
        ("acme-lora", "main"),
        ("zebra-lora", "a"),
        ("zebra-lora", "b"),
    ]


def test_the_order_does_not_depend_on_what_was_asked_first(site):
    site.plugin("acme-lora", '"Acme"')
    site.plugin("jno-lora-attention", '"Attention"')
    site.install_zoo()
    zoo_first = Registry()
    zoo_first.zoo_class("LoRALinear")
    assert order(zoo_first) == order(Registry())
    assert names(zoo_first) == names(Registry())


# --- lazy loading


def test_making_a_registry_imports_nothing(site):
    module = site.plugin("acme-lora", '"Acme"')
    Registry()
    assert module not in sys.modules


def test_explicit_classes_import_no_plugin(site, model, getkey):
    modules = [site.plugin("acme-lora", '"Acme"'), site.install_zoo()]
    apply_lora(model, 1, key=getkey(), wrapper=ToyLinear)
    assert not set(modules) & set(sys.modules)


def test_defaults_and_zoo_names_import_the_zoo_alone(site, model):
    zoo, other = site.install_zoo(), site.plugin("acme-lora", '"Acme"')
    Net(model).lora(1)
    plan_lora(model, 1, wrapper="DoRALinear")
    assert zoo in sys.modules and other not in sys.modules


def test_other_names_variants_auto_and_listing_load_everything(site):
    for number, ask in enumerate(
        [
            lambda registry: registry.resolve("Acme0"),
            lambda registry: registry.resolve("dora"),
            lambda registry: registry.auto(),
            lambda registry: registry.records(),
        ]
    ):
        zoo = site.install_zoo()
        module = site.plugin(f"acme-{number}", f'"Acme{number}"')
        ask(Registry())
        assert zoo in sys.modules and module in sys.modules


def test_each_plugin_is_loaded_once_however_often_it_is_asked(site):
    code = """
        CALLS = []
        Acme = adapter("Acme", auto=True)
        @hookimpl
        def jno_lora_wrappers():
            CALLS.append(1)
            return [Acme]
    """
    module = site.install("acme-lora", code)
    registry = Registry()
    for _ in range(3):
        assert registry.resolve("Acme") == registry.auto()
        registry.records()
    assert sys.modules[module].CALLS == [1]


def test_a_distribution_that_was_missing_is_found_once_it_is_installed(site):
    registry = Registry()
    with pytest.raises(PluginError, match="acme-lora is not installed"):
        registry.provided("acme-lora", "Acme")
    with pytest.raises(PluginError, match="adapter zoo"):
        registry.defaults()
    site.plugin("acme-lora", '"Acme"')
    site.install_zoo()
    assert registry.provided("acme-lora", "Acme").name == "Acme"
    assert registry.defaults()[0].__name__ == "LoRALinear"


def test_the_hook_may_be_on_an_object_that_the_entry_point_names(site):
    code = """
        class Plugin:
            @hookimpl
            def jno_lora_wrappers(self):
                return [adapter("Acme")]
        plugin = Plugin()
    """
    module = site.install("acme-lora", code)
    site.point_at("acme-lora", f"{module}:plugin")
    (record,) = Registry().records()
    assert record.status == "loaded" and record.wrappers[0].name == "Acme"


def test_entry_points_of_other_groups_are_no_plugins(site):
    site.plugin("acme-lora", '"Acme"')
    entry_points = next(site.root.glob("acme-lora-*/*.dist-info/entry_points.txt"))
    entry_points.write_text(entry_points.read_text().replace("jno.lora", "jno.lora.other"))
    assert Registry().records() == ()


def test_a_registry_without_discovery_finds_nothing_installed(site):
    module = site.plugin("acme-lora", '"Acme"')
    assert Registry(discover=False).records() == ()
    assert module not in sys.modules


# --- a plugin that uses the public names


def test_a_plugin_may_import_and_subclass_a_class_of_the_zoo(site):
    site.install_zoo()
    code = """
        from jno.lora import LoRALinear
        class Better(LoRALinear):
            variant = "better"
        @hookimpl
        def jno_lora_wrappers():
            return [Better]
    """
    site.install("acme-lora", code)
    assert [(r.distribution, r.status) for r in registered()] == [
        ("jno-lora-zoo", "loaded"),
        ("acme-lora", "loaded"),
    ]


def test_a_plugin_may_list_the_registry_while_it_is_loaded(site):
    code = """
        import jno.lora
        SEEN = [record.distribution for record in jno.lora.registered()]
        @hookimpl
        def jno_lora_wrappers():
            return [adapter("Curious")]
    """
    site.plugin("acme-lora", '"Acme"')
    site.install("curious-lora", code)
    assert [(r.distribution, r.status) for r in registered()] == [
        ("acme-lora", "loaded"),
        ("curious-lora", "loaded"),
    ]


# --- defaults and "auto", with a zoo that is a plugin like any other


def wrappers_of(model, **kwargs):
    return {row.path: row.wrapper.__name__ for row in plan_lora(model, 1, **kwargs).wrapped}


def test_installing_a_plugin_never_changes_the_defaults(site, model):
    site.install_zoo()
    before = wrappers_of(model)
    site.plugin("acme-lora", '"Acme", auto=True', '"AcmeEmb", auto=True, layer=eqx.nn.Embedding')
    registered()
    assert wrappers_of(model) == before == dict.fromkeys(MODEL_LINEARS, "LoRALinear")


def test_auto_is_defaults_first_then_who_opts_in_for_leaves_that_no_default_claims(site, model):
    site.install_zoo()
    site.plugin("acme-lora", '"Acme", auto=True', '"AcmeEmb", auto=True, layer=eqx.nn.Embedding')
    assert wrappers_of(model, wrapper="auto") == {
        "embedding": "AcmeEmb",
        **dict.fromkeys(MODEL_LINEARS, "LoRALinear"),
    }


def test_auto_leaves_out_who_does_not_opt_in(site, model):
    site.install_zoo()
    site.plugin("acme-lora", '"AcmeEmb", layer=eqx.nn.Embedding')
    assert "embedding" not in wrappers_of(model, wrapper="auto")


def test_two_plugins_that_claim_a_leaf_under_auto_are_both_named(site, model):
    site.install_zoo()
    site.plugin("acme-lora", '"AcmeEmb", auto=True, layer=eqx.nn.Embedding')
    site.plugin("bolt-lora", '"BoltEmb", auto=True, layer=eqx.nn.Embedding')
    with pytest.raises(ValueError, match="'embedding'") as caught:
        wrappers_of(model, wrapper="auto")
    assert "AcmeEmb (from acme-lora)" in str(caught.value)
    assert "BoltEmb (from bolt-lora)" in str(caught.value)


def test_a_select_hook_of_an_installed_plugin_decides(site, model):
    site.install_zoo()
    site.plugin("acme-lora", '"AcmeEmb", auto=True, layer=eqx.nn.Embedding')
    code = """
        Bolt = adapter("BoltEmb", auto=True, layer=eqx.nn.Embedding)
        @hookimpl
        def jno_lora_wrappers():
            return [Bolt]
        @hookimpl
        def jno_lora_select(path, leaf, candidates):
            return Bolt if path == "embedding" else None
    """
    site.install("bolt-lora", code)
    assert wrappers_of(model, wrapper="auto")["embedding"] == "BoltEmb"


def test_without_the_zoo_the_defaults_say_what_to_install(site, model):
    with pytest.raises(PluginError, match=r'pip install -U "jno-lora\[zoo\]"'):
        Net(model).lora(1)
    assert Net(model).lora(1, wrapper=UserEmbedding).summary().rows[0].path == "embedding"


# --- threads


def test_many_threads_import_each_plugin_once_and_see_the_same(site):
    # The module runs once. Several threads may call the hook; all use the classes that came first.
    code = """
        import time
        RUNS.append("acme-{0}")
        time.sleep(0.02)
        @hookimpl
        def jno_lora_wrappers():
            time.sleep(0.02)
            return [adapter("Acme{0}", auto=True)]
    """
    runs = []
    site.monkeypatch.setattr(builtins, "RUNS", runs, raising=False)
    for number in range(3):
        site.install(f"acme-{number}", code.replace("{0}", str(number)))
    zoo = site.install_zoo()
    registry, start, results = Registry(), threading.Barrier(16), []

    def ask(number):
        questions = [
            lambda: registry.zoo_class("DoRALinear"),
            lambda: registry.resolve("Acme1")[0],
            lambda: registry.auto(),
            lambda: tuple(record.status for record in registry.records()),
        ]
        start.wait()
        results.append((number % 4, questions[number % 4]()))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert len(results) == 16 and len(set(results)) == 4
    assert (3, ("loaded",) * 4) in results
    assert sorted(runs) == ["acme-0", "acme-1", "acme-2"]
    assert sys.modules[zoo]


def test_importing_a_plugin_while_another_thread_loads_it_does_not_deadlock(site):
    site.install_zoo()
    code = """
        STARTED.set()
        LISTING.wait(5)
        from jno.lora import LoRALinear
        @hookimpl
        def jno_lora_wrappers():
            return []
    """
    started, listing = threading.Event(), threading.Event()
    module = site.install("acme-lora", code)
    site.monkeypatch.setattr(builtins, "STARTED", started, raising=False)
    site.monkeypatch.setattr(builtins, "LISTING", listing, raising=False)
    importer = threading.Thread(target=importlib.import_module, args=(module,), daemon=True)
    lister = threading.Thread(target=registered, daemon=True)
    importer.start()
    started.wait(5)
    lister.start()
    lister.join(timeout=0.5)  # it now waits for the module that the importer holds
    listing.set()
    importer.join(timeout=10)
    lister.join(timeout=10)
    assert not importer.is_alive() and not lister.is_alive()
