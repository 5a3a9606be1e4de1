"""Threads, and modules of plugins, that ask the registry while plugins load."""

import jno.lora
from jno.lora import Registry

from .asking import at_once


def test_threads_that_ask_at_once_get_the_same_answers_and_one_warning(site, recwarn):
    site.install_zoo()
    site.plugin("acme-lora", '"Good", variant="good"')
    site.install("broken-lora", "import time\ntime.sleep(0.05)\nraise RuntimeError('no')\n")
    registry = Registry()
    names = at_once(*[lambda: registry.resolve("good")] * 8)
    assert {cls.__name__ for (cls,) in names} == {"Good"} and len({*names}) == 1
    assert [record.status for record in registry.records()] == ["loaded", "loaded", "failed"]
    assert len(recwarn) == 1 and "broken-lora" in str(recwarn[0].message)


def test_a_plugin_may_ask_for_the_zoo_and_for_all_plugins_while_it_is_imported(site):
    site.install_zoo()
    asks = "import jno.lora\nCLASSES = [jno.lora.LoRALinear, *jno.lora.registered()]\n"
    site.install(
        "asking-lora",
        f"{asks}A = adapter('A')\n@hookimpl\ndef jno_lora_wrappers():\n    return [A]\n",
    )
    records = jno.lora.registered()
    assert [(record.distribution, record.status) for record in records] == [
        ("jno-lora-zoo", "loaded"),
        ("asking-lora", "loaded"),
    ]
    assert jno.lora.registered() == records
