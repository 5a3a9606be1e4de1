"""Many threads that register, refresh and ask at once: nobody waits for ever, or is told nonsense.

The adapters asked for were there all the time, so every answer must be the same.
"""

import importlib
import sys
import threading
import time
import types

import pytest

import jno.lora
from jno.lora import Registry
from jno.lora._registry import _registry

from .toys import ToyLinear, ToyScale

SECONDS = 1.5


@pytest.fixture(autouse=True)
def _threads_take_turns_often():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def at_once(*actions):
    """Repeat each action in a thread of its own for a while, and return what they raised."""
    begin, end = threading.Barrier(len(actions)), threading.Event()
    errors, turns = [], [0] * len(actions)

    def repeat(number, action):
        begin.wait()
        while not end.is_set():
            try:
                action()
            except Exception as err:
                errors.append(err)
                return
            turns[number] += 1

    threads = [threading.Thread(target=repeat, args=one, daemon=True) for one in enumerate(actions)]
    for thread in threads:
        thread.start()
    time.sleep(SECONDS)
    end.set()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads), "a deadlock"
    assert not errors, errors[0]
    assert all(turns), turns
    return turns


def test_answers_stay_the_same_while_plugins_are_found_again(site):
    site.install_zoo()
    site.plugin("acme-lora", '"Good", variant="good"')
    site.plugin("bolt-lora", '"Other", variant="good"')
    registry = Registry()
    registry.register(ToyLinear)
    good, other = registry.resolve("good")
    linear = registry.zoo_class("LoRALinear")
    distributions = [record.distribution for record in registry.records()]

    def ask_for_a_variant():
        assert registry.resolve("good") == (good, other)

    def ask_for_a_name():
        assert registry.resolve("acme-lora:Good") == (good,)

    def ask_for_the_zoo():
        assert registry.zoo_class("LoRALinear") is linear
        assert registry.defaults()[0] is linear

    def ask_for_what_was_registered():
        assert registry.resolve("ToyLinear") == (ToyLinear,)
        assert registry.provided(None, "ToyLinear").cls is ToyLinear
        assert registry.provider(ToyLinear) is not None

    def list_all():
        found = [record.distribution for record in registry.records()]
        assert [name for name in found if name != "(in-process)"] == distributions[:-1]

    def register():
        registry.register(ToyScale)

    def choose():
        assert registry.select("path", None, [good, other]) is None

    asking = (ask_for_a_variant, ask_for_a_name, ask_for_the_zoo, ask_for_what_was_registered)
    at_once(*asking, list_all, register, choose, registry.refresh, registry.refresh)
    assert [record.status for record in registry.records()] == ["loaded"] * 5


def test_a_registry_of_ones_own_answers_while_it_is_refreshed():
    registry = Registry(discover=False)
    registry.register(ToyLinear)

    def ask():
        assert registry.resolve("ToyLinear") == (ToyLinear,)

    at_once(ask, ask, registry.refresh, lambda: registry.register(ToyScale))


def test_hooks_of_this_process_are_asked_while_the_registry_is_refreshed():
    class Chooser:
        @jno.lora.hookimpl
        def jno_lora_select(self, path, leaf, candidates):
            return candidates[1]

    registry = Registry(discover=False)
    registry.register(Chooser())

    def choose():
        assert registry.select("path", None, [ToyLinear, ToyScale]) is ToyScale

    at_once(choose, choose, registry.refresh)


@pytest.fixture
def gate(monkeypatch):
    """A module that a plugin imports to say that it is being imported, and to wait there."""
    module = types.ModuleType("jno_lora_test_gate")
    module.entered, module.open = threading.Event(), threading.Event()
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


WAITING = "import jno_lora_test_gate as gate\ngate.entered.set()\ngate.open.wait(30)\n"


def test_a_hook_may_ask_for_the_zoo_while_another_thread_loads_it(site, gate):
    site.install_zoo(WAITING)
    registry, asks, found = Registry(), threading.Event(), []

    class Plugin:
        @jno.lora.hookimpl
        def jno_lora_wrappers(self):
            asks.set()
            found.append(registry.zoo_class("LoRALinear"))
            return [ToyScale]

    threads = [
        threading.Thread(target=registry.defaults, daemon=True),
        threading.Thread(target=registry.register, args=(Plugin(),), daemon=True),
    ]
    threads[0].start()
    assert gate.entered.wait(30)
    threads[1].start()
    assert asks.wait(30)
    gate.open.set()
    for thread in threads:
        thread.join(timeout=30)
    assert not any(thread.is_alive() for thread in threads), "a deadlock"
    assert [cls.__name__ for cls in found] == ["LoRALinear"]
    assert registry.resolve("ToyScale") == (ToyScale,)


def test_who_asks_for_the_zoo_while_another_thread_loads_it_waits_for_it(site, gate):
    module = site.install_zoo(WAITING)

    class OfTheZoo(ToyLinear):
        """Defined in the zoo's package, as a class that somebody has imported from there."""

    OfTheZoo.__module__ = module
    registry, found = Registry(), []
    # To save such a class, the plugins of its package are loaded: not by the zoo's own way in.
    one = threading.Thread(target=registry.provider_of, args=(OfTheZoo,), daemon=True)
    other = threading.Thread(
        target=lambda: found.append(registry.zoo_class("LoRALinear")), daemon=True
    )
    one.start()
    assert gate.entered.wait(30)
    other.start()
    other.join(timeout=0.3)
    assert other.is_alive() and not found
    gate.open.set()
    one.join(timeout=30)
    other.join(timeout=30)
    assert [cls.__name__ for cls in found] == ["LoRALinear"]


def run_all(*actions):
    """Run each action in a thread of its own, and fail if one does not come to an end."""
    threads = [threading.Thread(target=action, daemon=True) for action in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert not any(thread.is_alive() for thread in threads), "a deadlock"


ASKS = """
import jno_lora_test_gate as gate
gate.together.wait(30)
gate.ask("{other}")
@hookimpl
def jno_lora_wrappers():
    return [adapter("Of_{name}")]
"""


@pytest.mark.parametrize("registries", [1, 2])
def test_two_plugins_that_ask_for_each_other_in_two_threads_are_both_loaded(site, gate, registries):
    for name, other in [("acme", "bolt"), ("bolt", "acme")]:
        site.install(f"{name}-lora", ASKS.format(name=name, other=other))
    found = {name: Registry() for name in ("acme", "bolt")}
    if registries == 1:
        found["bolt"] = found["acme"]
    gate.together, gate.seen = threading.Barrier(2), []

    def ask(other):
        seen = {record.distribution for record in found[other].records()}
        gate.seen.append((other, f"{other}-lora" in seen))

    gate.ask = ask
    run_all(*(lambda n=n: found[n].provided(f"{n}-lora", f"Of_{n}") for n in found))
    # At least one waited for the other, which may have gone on without it.
    assert len(gate.seen) == 2 and any(was_there for _, was_there in gate.seen)
    for registry in found.values():
        assert {record.status for record in registry.records()} == {"loaded"}


def test_a_plugin_that_a_thread_imports_by_itself_may_ask_for_all_while_another_loads_it(
    site, gate
):
    site.plugin("bolt-lora", '"Bolt"')
    code = (
        WAITING
        + """
gate.seen = [record.distribution for record in gate.registry.records()]
@hookimpl
def jno_lora_wrappers():
    return [adapter("Acme")]
"""
    )
    module, gate.registry = site.install("acme-lora", code), Registry()

    def list_all():
        assert gate.entered.wait(30)
        threading.Timer(0.3, gate.open.set).start()  # when this thread waits for the import
        gate.registry.records()

    run_all(lambda: importlib.import_module(module), list_all)
    assert gate.seen in (["bolt-lora"], [])
    assert [record.status for record in gate.registry.records()] == ["loaded", "loaded"]


def test_a_package_that_a_thread_imports_may_ask_for_all_while_another_loads_its_plugin(site, gate):
    body = WAITING + "gate.seen = [r.status for r in gate.registry.records()]\n"
    package, gate.registry = site.install("acme-lora", body), Registry()
    (file,) = site.root.glob(f"*/{package}.py")
    (file.parent / package).mkdir()
    file.rename(file.parent / package / "__init__.py")
    hook = "from jno.lora import hookimpl\n@hookimpl\ndef jno_lora_wrappers():\n    return []\n"
    hook = f"import {package}\n{hook}"
    (file.parent / package / "plugin.py").write_text(hook)
    site.point_at("acme-lora", f"{package}.plugin")

    def list_all():
        assert gate.entered.wait(30)
        threading.Timer(0.3, gate.open.set).start()  # when this thread waits for the import
        gate.registry.records()

    run_all(lambda: importlib.import_module(package), list_all)
    assert gate.seen in ([], ["loaded"])
    assert [record.status for record in gate.registry.records()] == ["loaded"]


def test_a_plugin_that_is_imported_first_and_asks_for_all_is_loaded_afterwards(site, gate):
    code = """
        import jno_lora_test_gate as gate
        gate.seen = gate.registry.records()
        @hookimpl
        def jno_lora_wrappers():
            return [adapter("Acme")]
    """
    module, gate.registry = site.install("acme-lora", code), Registry()
    importlib.import_module(module)
    assert gate.seen == ()
    assert gate.registry.resolve("Acme")[0].__name__ == "Acme"


def test_a_refresh_does_not_wait_for_a_plugin_that_is_being_loaded(site, gate):
    site.install("acme-lora", WAITING + "@hookimpl\ndef jno_lora_wrappers():\n    return []\n")
    registry, found = Registry(), []
    lists = threading.Thread(target=lambda: found.append(registry.records()), daemon=True)
    lists.start()
    assert gate.entered.wait(30)
    run_all(registry.refresh)
    gate.open.set()
    lists.join(timeout=30)
    # The question is answered by what there was; the next one looks again.
    assert [record.status for record in found[0]] == ["loaded"]
    assert registry._now.catalog.plugins == {}
    assert len(registry.records()) == 1


def test_a_plugin_may_refresh_and_ask_while_it_is_loaded(site, gate):
    code = """
        import jno_lora_test_gate as gate
        gate.registry.refresh()
        gate.seen = gate.registry.records()
        @hookimpl
        def jno_lora_wrappers():
            return [adapter("Acme")]
    """
    site.install("acme-lora", code)
    gate.registry = Registry()
    assert [record.status for record in gate.registry.records()] == ["loaded"]
    assert gate.seen == ()
    assert [record.status for record in gate.registry.records()] == ["loaded"]


SHARED = """
import jno_lora_test_gate as gate
gate.entered.set()
gate.open.wait(30)
gate.seen = gate.registry.records()
"""


def test_a_module_that_two_plugins_import_may_ask_for_all(site, gate, monkeypatch):
    """Acme's thread imports it. Carp's thread waits for bolt's, which waits for that import."""
    monkeypatch.delitem(sys.modules, "jno_lora_test_shared", raising=False)
    (site.root / "jno_lora_test_shared.py").write_text(SHARED)
    hook = "\n@hookimpl\ndef jno_lora_wrappers():\n    return [adapter('{}')]\n"
    site.install("acme-lora", "import jno_lora_test_shared" + hook.format("Acme"))
    site.install("bolt-lora", "import jno_lora_test_shared" + hook.format("Bolt"))
    asks = "import jno_lora_test_gate as gate\ngate.registry.provided('bolt-lora', 'Bolt')"
    site.install("carp-lora", asks + hook.format("Carp"))
    registry = gate.registry = Registry()

    def ask_for(distribution, name, after):
        assert gate.entered.wait(30)
        time.sleep(after)
        registry.provided(distribution, name)

    def open_later():
        assert gate.entered.wait(30)
        time.sleep(0.6)
        gate.open.set()

    run_all(
        registry.records,
        lambda: ask_for("bolt-lora", "Bolt", 0),
        lambda: ask_for("carp-lora", "Carp", 0.3),
        open_later,
    )
    assert gate.seen == ()
    assert [record.status for record in registry.records()] == ["loaded"] * 3


BOTH_ARE_ASKED = """
import jno_lora_test_gate as gate
@hookimpl
def jno_lora_wrappers():
    gate.turns.append(1)
    if len(gate.turns) == 1:
        gate.entered.set()
        gate.open.wait(30)
    return [adapter("Acme")]
"""


def test_of_two_threads_that_load_a_plugin_the_first_result_wins(site, gate):
    site.install("acme-lora", BOTH_ARE_ASKED)
    gate.turns, registry, answers = [], Registry(), {}

    def ask_first():
        answers["slow"] = registry.resolve("Acme")

    slow = threading.Thread(target=ask_first, daemon=True)
    slow.start()
    assert gate.entered.wait(30)
    answers["quick"] = registry.resolve("Acme")  # does not wait for a hook
    gate.open.set()
    slow.join(timeout=30)
    assert not slow.is_alive() and len(gate.turns) == 2
    assert answers["slow"] == answers["quick"] == registry.resolve("Acme")


@pytest.mark.parametrize("where", ["the body", "the hook"])
def test_a_plugin_that_fails_in_two_threads_has_one_warning(site, gate, where, monkeypatch):
    fails = "gate.together.wait(30)\n    raise RuntimeError('broken')\n"
    code = f"import jno_lora_test_gate as gate\n@hookimpl\ndef jno_lora_wrappers():\n    {fails}"
    if where == "the body":
        code = "import time\ntime.sleep(0.2)\nraise RuntimeError('broken')\n"
    site.install("broken-lora", code)
    gate.together, registry, answers = threading.Barrier(2), Registry(), []
    # `warnings.catch_warnings` is not made for threads: run-time type checks use it in each thread.
    messages: list[str] = []
    monkeypatch.setattr(_registry, "warn", messages.append)
    run_all(*[lambda: answers.append(registry.records())] * 2)
    (message,) = messages
    assert "broken-lora" in message
    assert [[record.status for record in records] for records in answers] == [["failed"]] * 2


@pytest.mark.parametrize("registries", ["the same registry", "a registry of its own"])
def test_a_hook_that_asks_for_all_plugins_is_not_called_again_for_that(site, gate, registries):
    code = """
        import jno_lora_test_gate as gate
        from jno.lora import Registry
        @hookimpl
        def jno_lora_wrappers():
            registry = gate.registry or Registry()
            gate.seen.append([record.distribution for record in registry.records()])
            return [adapter("Acme")]
    """
    site.install("acme-lora", code)
    site.plugin("bolt-lora", '"Bolt"')
    registry = Registry()
    gate.seen, gate.registry = [], registry if registries == "the same registry" else None
    assert [record.status for record in registry.records()] == ["loaded", "loaded"]
    assert gate.seen == [["bolt-lora"]]
