"""Installed plugins: found in a fixed order, loaded lazily, once, and each on its own."""

import builtins
import importlib
import sys
import threading

import pytest

import jno.lora
from jno.lora import Net, PluginError, Registry, apply_lora, plan_lora, registered
from jno.lora._registry.plugins import find_plugins

from .asking import at_once, names, one, statuses
from .toys import MODEL_LINEARS, ToyLinear, ToyScale

EMPTY = "@hookimpl\ndef jno_lora_wrappers():\n    return []\n"


def test_a_record_says_what_was_found_once_it_is_installed(site):
    registry = Registry()
    with pytest.raises(PluginError, match="acme-lora is not installed"):
        registry.provided("acme-lora", "Acme")
    assert Registry().records() == ()
    module = site.plugin("acme-lora", '"Acme", variant="acme"', '"Bolt"', version="2.3")
    wrapper = registry.provided("acme-lora", "Acme")  # by the registry that looked too early
    assert (wrapper.name, wrapper.qualified_name) == ("Acme", "acme-lora:Acme")
    assert (wrapper.distribution, wrapper.version) == ("acme-lora", "2.3")
    with pytest.raises(PluginError, match=r"has no adapter 'Acne'; it has Acme"):
        registry.provided("acme-lora", "Acne")
    (record,) = registry.records()
    assert (record.name, record.distribution, record.version) == ("main", "acme-lora", "2.3")
    assert (record.value, record.status, record.error) == (module, "loaded", None)
    assert record.seconds > 0
    shown = f"PluginRecord(acme-lora 2.3 (entry point 'main' = '{module}'), loaded, 2 adapters)"
    assert repr(record) == shown


def test_the_zoo_comes_first_then_our_plugins_then_distribution_then_entry_point(site):
    site.install("Zebra_Lora", EMPTY, entry="b", entries={"a": EMPTY})
    site.install("acme.lora", EMPTY)
    site.install("jno_lora_attention", EMPTY)
    zoo = site.install_zoo()
    expected = [
        ("jno-lora-zoo", "main"),
        ("jno-lora-attention", "main"),
        ("acme-lora", "main"),
        ("zebra-lora", "a"),
        ("zebra-lora", "b"),
    ]
    assert [(found.distribution, found.name) for found in find_plugins()] == expected
    assert zoo not in sys.modules  # so far, nothing is imported
    zoo_first = Registry()
    zoo_first.zoo_class("LoRALinear")
    for registry in (zoo_first, Registry()):
        assert [(r.distribution, r.name) for r in registry.records()] == expected


def test_only_entry_points_of_the_group_of_a_whole_installation_count(site):
    site.plugin("acme-lora", '"Acme"', group="jno.lora.other")
    folder = site.root / "broken"
    (folder / "half_removed-1.0.dist-info").mkdir(parents=True)
    (folder / "half_removed-1.0.dist-info" / "entry_points.txt").write_text(
        "[jno.lora]\nmain = no_such_module_here\n"
    )
    site.monkeypatch.syspath_prepend(folder)
    assert Registry().records() == ()


def test_each_question_imports_what_it_needs(site, model, getkey):
    zoo, other = site.install_zoo(), site.plugin("acme-lora", '"Acme"')
    Registry()
    apply_lora(model, 1, key=getkey(), wrapper=ToyLinear)
    assert Registry(discover=False).records() == ()
    assert not {zoo, other} & set(sys.modules)
    Net(model).lora(1)
    plan_lora(model, 1, wrapper="DoRALinear")
    for name in ("dora_linear", "jno-lora-zoo:DoRALinear"):
        assert one(Registry(), name).__name__ == "DoRALinear"
    assert zoo in sys.modules and other not in sys.modules
    third = site.plugin("bolt-lora", '"Bolt"')
    assert one(Registry(), "bolt-lora:Bolt").__name__ == "Bolt"
    assert third in sys.modules and other not in sys.modules


@pytest.mark.parametrize("question", ["resolve Acme", "resolve dora", "auto", "records"])
def test_other_questions_load_everything_once(site, question):
    code = """
        CALLS = []
        @hookimpl
        def jno_lora_wrappers():
            CALLS.append(1)
            return [adapter("Acme", auto=True)]
    """
    site.install_zoo()
    module, registry = site.install("acme-lora", code), Registry()
    method, *names = question.split()
    for _ in range(2):
        getattr(registry, method)(*names)
    assert sys.modules[module].CALLS == [1]


def test_a_refresh_looks_for_plugins_and_reads_the_environment_again(site, monkeypatch):
    jno.lora.register(ToyScale)
    site.plugin("acme-lora", '"Acme"')
    monkeypatch.setenv("JNO_LORA_BLOCK", "acme-lora")
    assert [record.status for record in registered()] == ["blocked", "loaded"]
    site.plugin("bolt-lora", '"Bolt"')
    monkeypatch.delenv("JNO_LORA_BLOCK")
    assert len(registered()) == 2
    jno.lora.refresh()
    assert [record.status for record in registered()] == ["loaded"] * 3


def test_a_plugin_may_use_the_zoo_and_list_all_plugins_while_it_is_imported(site):
    code = """
        import jno.lora
        SEEN = [record.distribution for record in jno.lora.registered()]
        class Better(jno.lora.LoRALinear):
            variant = "better"
        @hookimpl
        def jno_lora_wrappers():
            return [Better]
    """
    site.install_zoo()
    site.plugin("zebra-lora", '"Zebra"')
    module = site.install("asking-lora", code)
    names = ["jno-lora-zoo", "asking-lora", "zebra-lora"]
    assert [(r.distribution, r.status) for r in registered()] == [(n, "loaded") for n in names]
    assert sys.modules[module].SEEN == ["jno-lora-zoo", "zebra-lora"]


def test_many_threads_import_each_plugin_once_and_see_the_same(site, recwarn):
    # The module runs once. Several threads may call the hook; all use the classes that came first.
    code = """
        import time
        RUNS.append(1)
        time.sleep(0.02)
        @hookimpl
        def jno_lora_wrappers():
            time.sleep(0.02)
            return [adapter("Acme", auto=True)]
    """
    runs = []
    site.monkeypatch.setattr(builtins, "RUNS", runs, raising=False)
    site.install("acme-lora", code)
    site.install("broken-lora", "import time\ntime.sleep(0.05)\nraise RuntimeError('no')\n")
    site.install_zoo()
    registry = Registry()
    questions = [
        lambda: registry.zoo_class("DoRALinear"),
        lambda: one(registry, "Acme"),
        registry.auto,
        lambda: tuple(statuses(registry).values()),
    ]
    answers = at_once(*questions * 3)
    assert answers == answers[:4] * 3 and runs == [1]
    assert answers[3] == ("loaded", "loaded", "failed")
    assert len(recwarn) == 1 and "broken-lora" in str(recwarn[0].message)


def test_importing_a_plugin_while_another_thread_loads_it_does_not_deadlock(site):
    site.install_zoo()
    code = f"STARTED.set()\nLISTING.wait(5)\nfrom jno.lora import LoRALinear\n{EMPTY}"
    started, listing = threading.Event(), threading.Event()
    module = site.install("acme-lora", code)
    site.monkeypatch.setattr(builtins, "STARTED", started, raising=False)
    site.monkeypatch.setattr(builtins, "LISTING", listing, raising=False)
    importer = threading.Thread(target=importlib.import_module, args=(module,), daemon=True)
    lister = threading.Thread(target=registered, daemon=True)
    importer.start()
    started.wait(5)
    lister.start()
    lister.join(timeout=0.2)  # it now waits for the module that the importer holds
    listing.set()
    importer.join(timeout=10)
    lister.join(timeout=10)
    assert not importer.is_alive() and not lister.is_alive()


EMBEDDING = '"{}Emb", auto=True, variant="lora", layer=eqx.nn.Embedding'
LINEARS = dict.fromkeys(MODEL_LINEARS, "LoRALinear")


def test_a_plugin_extends_auto_and_a_variant_to_layers_that_nobody_covers_and_no_defaults(
    site, model
):
    site.install_zoo()
    site.plugin("acme-lora", '"Acme", auto=True, variant="LoRA"', EMBEDDING.format("Acme"))
    site.plugin("idle-lora", '"IdleEmb", layer=eqx.nn.Embedding')  # has neither
    for word in ("auto", "lora"):
        assert names(model, 1, wrapper=word) == {"embedding": "AcmeEmb", **LINEARS}
    assert names(model, 1) == LINEARS
    site.plugin("jno-lora-attention", EMBEDDING.format("Our"))
    jno.lora.refresh()
    for word in ("auto", "lora"):
        assert names(model, 1, wrapper=word) == {"embedding": "OurEmb", **LINEARS}
