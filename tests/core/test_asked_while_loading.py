"""When plugins are asked for, and by whom, changes no answer."""

import threading

import pytest

import jno.lora._registry._registry as registry_module
from jno.lora import Registry

from .toys import ToyLinear, ToyScale

# Asks for all others while it is imported, and is slow to finish.
ASKS = """
    import time
    from jno.lora import registered
    registered()
    time.sleep(0.5)
    @hookimpl
    def jno_lora_wrappers():
        return [adapter("Slow")]
"""

CHOOSES = """
    @hookimpl
    def jno_lora_wrappers():
        return [adapter("Of{number}")]
    @hookimpl
    def jno_lora_select(path, leaf, candidates):
        return candidates[{number}]
"""


def test_a_thread_waits_for_a_plugin_that_asks_for_all_others(site):
    site.install("slow-lora", ASKS)
    registry = registry_module.default_registry()
    together, found = threading.Barrier(2), []

    def ask():
        together.wait()
        found.extend(registry.resolve("Slow"))

    others = [threading.Thread(target=ask) for _ in range(2)]
    for other in others:
        other.start()
    for other in others:
        other.join()
    assert [cls.__name__ for cls in found] == ["Slow", "Slow"] and found[0] is found[1]


@pytest.mark.parametrize("first", [0, 1, None])
def test_which_hook_decides_does_not_depend_on_what_was_loaded_first(site, first):
    for number in range(2):
        site.install(f"of-{number}", CHOOSES.format(number=number))
    registry = Registry()
    if first is not None:
        registry.provided(f"of-{first}", f"Of{first}")
    registry.records()
    assert registry.select("head", None, [ToyLinear, ToyScale]) is ToyScale
