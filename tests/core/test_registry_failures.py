"""A plugin that is broken, blocked or too new keeps nobody else from loading."""

import sys

import pytest

from jno.lora import JnoLoraWarning, PluginError, Registry, plan_lora

from .asking import statuses
from .toys import ToyLinear

GOOD = '"Good", variant="good"'

BROKEN = {
    "import fails": ("import there_is_no_such_module", "ModuleNotFoundError"),
    "module raises": ("raise RuntimeError('broken on import')", "broken on import"),
    "hook raises": (
        "@hookimpl\ndef jno_lora_wrappers():\n    raise OSError('broken in the hook')",
        "broken in the hook",
    ),
    "hook returns None": (
        "@hookimpl\ndef jno_lora_wrappers():\n    return None",
        "must return an iterable of LoRAWrapper classes, but returned None",
    ),
    "hook returns a class": (
        "@hookimpl\ndef jno_lora_wrappers():\n    return adapter('Lonely')",
        "must return an iterable of LoRAWrapper classes, but returned <class",
    ),
    "hook returns a string": (
        "@hookimpl\ndef jno_lora_wrappers():\n    return 'Name'",
        "'N' is not a subclass of jno.lora.LoRAWrapper",
    ),
    "hook returns names": (
        "@hookimpl\ndef jno_lora_wrappers():\n    return ['Name']",
        "'Name' is not a subclass of jno.lora.LoRAWrapper",
    ),
    "hook returns dicts": (
        "@hookimpl\ndef jno_lora_wrappers():\n    return [{}]",
        "{} is not a subclass of jno.lora.LoRAWrapper",
    ),
    "hook returns other classes": (
        "@hookimpl\ndef jno_lora_wrappers():\n    return [eqx.nn.Linear]",
        "is not a subclass of jno.lora.LoRAWrapper",
    ),
    "hook returns an unfinished class": (
        "class Half(LoRAWrapper):\n    adapter_fields = ('delta',)\n"
        "@hookimpl\ndef jno_lora_wrappers():\n    return [Half]",
        "Half is not a usable adapter class",
    ),
    "hook takes unknown arguments": (
        "@hookimpl\ndef jno_lora_wrappers(model):\n    return []",
        "jno_lora_wrappers",
    ),
    "hook is misspelled": (
        "@hookimpl\ndef jno_lora_wraperss():\n    return []",
        "jno_lora_wraperss",
    ),
    "hook is not marked": (
        "def jno_lora_wrappers():\n    return []",
        "implements none of the hooks. Mark its functions",
    ),
    "api is not a number": (
        "jno_lora_api = '1'\n@hookimpl\ndef jno_lora_wrappers():\n    return []",
        "TypeError",
    ),
    "the module exits": ("raise SystemExit(3)", "3"),
}


@pytest.mark.parametrize(("code", "reason"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_plugin_is_left_out_with_one_warning_and_the_rest_loads(site, code, reason):
    module = site.install("broken-lora", code, version="0.9", entry="bad")
    site.plugin("acme-lora", GOOD)
    site.plugin("zebra-lora", '"Zebra"')
    registry = Registry()
    with pytest.warns(JnoLoraWarning) as caught:
        assert statuses(registry) == {
            "acme-lora": "loaded",
            "broken-lora": "failed",
            "zebra-lora": "loaded",
        }
    assert len(caught) == 1
    message = str(caught[0].message)
    assert f"broken-lora 0.9 (entry point 'bad' = '{module}')" in message
    assert reason in message and "left out" in message
    assert [cls.__name__ for cls in registry.resolve("good")] == ["Good"]
    assert registry.records()[1].wrappers == ()


def test_every_broken_plugin_has_a_warning_of_its_own_and_only_once(site):
    site.install("broken-one", "raise RuntimeError('one')")
    site.install("broken-two", "raise RuntimeError('two')")
    registry = Registry()
    with pytest.warns(JnoLoraWarning) as caught:
        registry.records()
    for warning, name in zip(caught, ["broken-one", "broken-two"], strict=True):
        assert name in str(warning.message)
    registry.records()  # a second warning would be an error


def test_a_warning_that_is_an_error_does_not_hide_the_other_plugins(site):
    site.install("broken-lora", "raise RuntimeError('broken')")
    site.plugin("zebra-lora", GOOD)
    registry = Registry()
    with pytest.raises(JnoLoraWarning):
        registry.records()
    assert statuses(registry) == {"broken-lora": "failed", "zebra-lora": "loaded"}
    assert registry.resolve("Good")


def test_asking_for_a_name_of_a_broken_plugin_raises_the_stored_cause(site):
    site.install("broken-lora", "raise RuntimeError('the cause')", version="0.9")
    registry = Registry()
    with pytest.warns(JnoLoraWarning):
        registry.records()
    with pytest.raises(PluginError) as caught:
        registry.resolve("broken-lora:Anything")
    message = str(caught.value)
    assert "broken-lora:Anything is not available" in message
    assert "broken-lora 0.9 (entry point 'main'" in message
    assert "failed: RuntimeError: the cause" in message
    assert str(caught.value.__cause__) == "the cause"


def test_an_unknown_name_mentions_the_plugin_that_may_have_held_it(site):
    site.install("broken-lora", "raise RuntimeError('the cause')")
    site.plugin("acme-lora", GOOD)
    registry = Registry()
    with pytest.warns(JnoLoraWarning):
        registry.records()
    with pytest.raises(ValueError, match="No adapter or variant is called 'Goode'") as caught:
        registry.resolve("Goode")
    message = str(caught.value)
    assert "'Good'" in message
    assert "broken-lora 1.0" in message and "the cause" in message
    assert str(caught.value.__cause__) == "the cause"


def test_a_broken_zoo_re_raises_its_cause_for_each_of_its_names(site, model):
    site.install("jno-lora-zoo", "raise RuntimeError('zoo is broken')")
    registry = Registry()
    with pytest.warns(JnoLoraWarning, match="zoo is broken"), pytest.raises(PluginError) as caught:
        registry.zoo_class("DoRALinear")
    assert "DoRALinear is not available" in str(caught.value)
    assert "pip install" not in str(caught.value)
    with pytest.raises(PluginError, match="zoo is broken"):
        registry.defaults()
    plan_lora(model, 1, wrapper=ToyLinear)


def test_half_loaded_plugins_leave_no_hooks_behind(site, model):
    code = """
        @hookimpl
        def jno_lora_wrappers():
            raise RuntimeError("broken")
        @hookimpl
        def jno_lora_select(path, leaf, candidates):
            raise AssertionError("a broken plugin was asked")
    """
    site.install("broken-lora", code)
    registry = Registry()
    with pytest.warns(JnoLoraWarning):
        registry.records()
    assert registry.select("head", model.head, [ToyLinear, ToyLinear]) is None


# --- incompatible


def test_a_plugin_for_a_newer_api_is_incompatible_and_says_both_numbers(site):
    code = "jno_lora_api = 99\n@hookimpl\ndef jno_lora_wrappers():\n    raise AssertionError"
    site.install("future-lora", code)
    registry = Registry()
    with pytest.warns(JnoLoraWarning, match="plugin API 99, this jno-lora has 1: upgrade"):
        (record,) = registry.records()
    assert record.status == "incompatible" and isinstance(record.error, PluginError)
    with pytest.raises(PluginError, match=r"is incompatible: .*99"):
        registry.resolve("future-lora:Anything")


@pytest.mark.parametrize("api", [1, 0])
def test_a_plugin_for_this_or_an_older_api_is_loaded(site, api):
    site.install("old-lora", f"jno_lora_api = {api}\n@hookimpl\ndef jno_lora_wrappers(): return []")
    assert statuses(Registry()) == {"old-lora": "loaded"}


# --- blocked


@pytest.fixture
def three(site):
    return {
        "zoo": site.install_zoo(),
        "acme": site.plugin("acme-lora", '"Acme"', entry="acme-entry"),
        "bolt": site.plugin("bolt-lora", '"Bolt"'),
    }


@pytest.mark.parametrize(
    ("variable", "value", "blocked"),
    [
        ("JNO_LORA_PLUGINS", "", {"acme", "bolt"}),
        ("JNO_LORA_PLUGINS", "acme-lora", {"bolt"}),
        ("JNO_LORA_PLUGINS", " Acme_Lora , bolt.lora ", set()),
        ("JNO_LORA_PLUGINS", "somebody-else", {"acme", "bolt"}),
        ("JNO_LORA_BLOCK", "", set()),
        ("JNO_LORA_BLOCK", "acme-lora", {"acme"}),
        ("JNO_LORA_BLOCK", "acme-entry", {"acme"}),
        ("JNO_LORA_BLOCK", "ACME.lora,bolt-lora", {"acme", "bolt"}),
        ("JNO_LORA_BLOCK", "jno-lora-zoo", {"zoo"}),
    ],
)
def test_a_plugin_that_the_environment_blocks_is_never_imported(
    three, monkeypatch, variable, value, blocked
):
    monkeypatch.setenv(variable, value)
    short = {"jno-lora-zoo": "zoo", "acme-lora": "acme", "bolt-lora": "bolt"}
    found = {short[r.distribution]: r for r in Registry().records() if r.status == "blocked"}
    assert set(found) == blocked
    assert {name for name, module in three.items() if module not in sys.modules} == blocked
    for record in found.values():
        assert variable in str(record.error) and record.wrappers == ()


def test_the_block_list_wins_over_the_allow_list(three, monkeypatch):
    monkeypatch.setenv("JNO_LORA_PLUGINS", "acme-lora")
    monkeypatch.setenv("JNO_LORA_BLOCK", "acme-lora")
    assert statuses(Registry())["acme-lora"] == "blocked"


def test_asking_for_a_blocked_name_says_which_variable_blocks_it(three, monkeypatch):
    monkeypatch.setenv("JNO_LORA_BLOCK", "acme-lora,jno-lora-zoo")
    registry = Registry()
    with pytest.raises(PluginError, match=r"acme-lora is blocked: .* JNO_LORA_BLOCK"):
        registry.resolve("acme-lora:Acme")
    with pytest.raises(PluginError, match=r"`wrapper=None` is not available.*JNO_LORA_BLOCK"):
        registry.defaults()


# --- strict


@pytest.mark.parametrize("code", ["raise RuntimeError('the cause')", "jno_lora_api = 99"])
def test_strict_mode_raises_at_once_and_again(site, monkeypatch, code):
    site.install("broken-lora", code)
    monkeypatch.setenv("JNO_LORA_STRICT", "1")
    registry = Registry()
    for _ in range(2):
        with pytest.raises(PluginError, match=r"broken-lora 1.0") as caught:
            registry.records()
        assert caught.value.__cause__ is not None


@pytest.mark.parametrize("value", ["", "0"])
def test_strict_mode_can_be_off(site, monkeypatch, value):
    site.install("broken-lora", "raise RuntimeError('the cause')")
    monkeypatch.setenv("JNO_LORA_STRICT", value)
    with pytest.warns(JnoLoraWarning):
        Registry().records()


def test_strict_mode_minds_no_blocked_plugin(three, monkeypatch):
    monkeypatch.setenv("JNO_LORA_STRICT", "1")
    monkeypatch.setenv("JNO_LORA_PLUGINS", "")
    assert set(statuses(Registry()).values()) == {"loaded", "blocked"}


def test_a_strict_question_raises_for_a_plugin_that_is_known_to_be_broken(site):
    site.install("broken-lora", "raise RuntimeError('the cause')")
    site.plugin("good-lora", '"Good"')
    registry = Registry()
    with pytest.warns(JnoLoraWarning):
        registry.records()
    with pytest.raises(PluginError, match=r"broken-lora 1.0") as caught:
        registry.records(strict=True)
    assert "the cause" in str(caught.value.__cause__)
    assert statuses(registry) == {"broken-lora": "failed", "good-lora": "loaded"}
