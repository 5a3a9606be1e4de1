"""A plugin that is broken, blocked or too new hurts no other plugin, and the user is told."""

import functools
import re
import sys

import equinox as eqx
import jax
import pytest

import jno.lora
from jno.lora import (
    JnoLoraWarning,
    PluginError,
    Registry,
    WrapperError,
    apply_lora,
    plan_lora,
)
from jno.lora.extending import default_adapters

from .asking import names, one, statuses
from .toys import MODEL_LINEARS, ToyLinear

GOOD = '"Good", variant="good"'
HOOK = "@hookimpl\ndef jno_lora_wrappers():\n    return "
LINEARS = dict.fromkeys(MODEL_LINEARS, "LoRALinear")


BROKEN = {
    "import fails": ("import there_is_no_such_module", "ModuleNotFoundError"),
    "module exits": ("raise SystemExit(3)", "3"),
    "raises": ("@hookimpl\ndef jno_lora_wrappers(): raise OSError('no disk')", "no disk"),
    "returns None": (f"{HOOK}None", "must return an iterable of LoRAWrapper classes"),
    "unusable class": (f"{HOOK}[adapter('Bad', variant='All-Linear')]", "but is 'All-Linear'"),
    "unknown arguments": (
        "@hookimpl\ndef jno_lora_commands(group, model): return []",
        "`jno_lora_commands(group)`",
    ),
    "misspelled": ("@hookimpl\ndef jno_lora_wraperss(): return []", "jno_lora_wraperss"),
    "not marked": ("def jno_lora_wrappers(): return []", "implements none of the hooks. Mark its"),
}


@pytest.mark.parametrize(("code", "reason"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_plugin_is_left_out_with_one_warning_and_the_rest_loads(site, code, reason):
    module = site.install("broken-lora", code, version="0.9", entry="bad")
    site.plugin("acme-lora", GOOD)
    site.plugin("zebra-lora", '"Zebra"')
    registry = Registry()
    with pytest.warns(JnoLoraWarning) as caught:
        found = statuses(registry)
    assert found == {"acme-lora": "loaded", "broken-lora": "failed", "zebra-lora": "loaded"}
    (message,) = (str(warning.message) for warning in caught)
    assert f"broken-lora 0.9 (entry point 'bad' = '{module}')" in message
    assert reason in message and "left out" in message
    assert one(registry, "good").__name__ == "Good"  # a second warning would be an error
    assert registry.records()[1].wrappers == ()
    for ask, message in [
        (lambda: registry.records(strict=True), r"broken-lora 0\.9"),
        (lambda: registry.resolve("Goode"), r"(?s)nearest .*The plugin broken-lora 0\.9"),
        # Its name is in the name that was asked for, so this is the reason, and all that is said.
        (
            lambda: registry.resolve("MyBrokenLoRA"),
            r"^MyBrokenLoRA is not available: the plugin b.*",
        ),
    ]:
        with pytest.raises(PluginError, match=message) as caught:
            ask()
        assert caught.value.__cause__ is registry.records()[1].error
    assert "nearest" not in str(caught.value)


def test_a_warning_that_is_an_error_does_not_hide_the_other_plugins(site):
    for name in ("broken-one", "broken-two"):
        site.install(name, "raise RuntimeError('broken')")
    site.plugin("zebra-lora", GOOD)
    registry = Registry()
    for name in ("broken-one", "broken-two"):  # each has its warning
        with pytest.raises(JnoLoraWarning, match=name):
            registry.records()
    assert list(statuses(registry).values()) == ["failed", "failed", "loaded"]
    registry.refresh()
    with pytest.raises(JnoLoraWarning, match="broken-one"):  # looked at again
        registry.records()


def test_a_broken_zoo_re_raises_its_cause_for_each_of_its_names_and_in_strict_mode_at_once(
    site, model, monkeypatch
):
    site.install("jno-lora-zoo", "raise RuntimeError('zoo is broken')")
    monkeypatch.setenv("JNO_LORA_STRICT", "0")
    registry = Registry()
    with (
        pytest.warns(JnoLoraWarning, match="zoo is broken"),
        pytest.raises(PluginError, match=r"DoRALinear is not available.*zoo is broken"),
    ):
        registry.zoo_class("DoRALinear")
    with pytest.raises(PluginError, match="zoo is broken"):
        registry.defaults()
    plan_lora(model, 1, wrapper=ToyLinear)
    monkeypatch.setenv("JNO_LORA_STRICT", "1")
    for _ in range(2):
        with pytest.raises(PluginError, match="zoo is broken") as caught:
            Registry().records()
        assert caught.value.__cause__ is not None
    with pytest.raises(PluginError, match="zoo is broken"):
        registry.resolve("LoRALinear")
    with pytest.warns(JnoLoraWarning, match="zoo is broken"):  # of the default registry
        assert "apply_lora" in dir(jno.lora)


def test_a_plugin_for_a_newer_api_is_incompatible(site):
    for name, api in [("new", 99), ("now", 1), ("old", 0), ("text", "'1'")]:
        site.install(f"{name}-lora", f"jno_lora_api = {api}\n{HOOK}[adapter('{name}')]")
    registry = Registry()
    with pytest.warns(JnoLoraWarning) as caught:
        found = statuses(registry)
    assert [*found.values()] == ["incompatible", "loaded", "loaded", "failed"]
    new, text = (str(warning.message) for warning in caught)
    assert "new-lora" in new and "plugin API 99, this jno-lora has 1: upgrade" in new
    assert "text-lora" in text
    with pytest.raises(PluginError, match=r"is incompatible: .*99"):
        registry.resolve("new-lora:new")


@pytest.mark.parametrize(
    ("variable", "blocked"),
    [
        ("", set()),
        ("acme-entry", {"acme-lora"}),
        ("jno-lora-zoo", {"jno-lora-zoo"}),
        (" ACME.lora , somebody-else,bolt_lora", {"acme-lora", "bolt-lora"}),
    ],
)
def test_a_plugin_that_the_environment_blocks_is_never_imported(
    site, monkeypatch, variable, blocked
):
    modules = {
        "jno-lora-zoo": site.install_zoo(),
        "acme-lora": site.plugin("acme-lora", '"Acme"', entry="acme-entry"),
        "bolt-lora": site.plugin("bolt-lora", '"Bolt"'),
    }
    monkeypatch.setenv("JNO_LORA_BLOCK", variable)
    monkeypatch.setenv("JNO_LORA_STRICT", "1")  # which minds no blocked plugin
    registry = Registry()
    found = {record.distribution: record for record in registry.records()}
    assert {name for name in found if found[name].status == "blocked"} == blocked
    assert {name for name in modules if modules[name] not in sys.modules} == blocked
    for name in blocked:
        assert "JNO_LORA_BLOCK" in str(found[name].error) and not found[name].wrappers
        with pytest.raises(PluginError, match=rf"{name} is blocked: .* JNO_LORA_"):
            registry.resolve(f"{name}:Name")
    if "jno-lora-zoo" in blocked:
        with pytest.raises(PluginError, match=r"`wrapper=None` is not available.*LORA_BLOCK"):
            registry.defaults()
        with pytest.raises(PluginError, match=r"(?s)called 'dora'.*is blocked: .*LORA_BLOCK"):
            registry.resolve("dora")


def with_fault(body, question="applies_to"):
    """A plugin whose class `Bad` fails on embeddings, after it has claimed a norm."""
    return f"""
        import numpy as np
        def fault(leaf):
            {body}
        def answer(cls, leaf):
            return fault(leaf) if isinstance(leaf, eqx.nn.Embedding) else (
                isinstance(leaf, eqx.nn.LayerNorm) if {question!r} == "applies_to" else None
            )
        Bad = adapter("Bad", "dora", auto=True, layer=eqx.nn.LayerNorm)
        Bad.{question} = classmethod(answer)
        @hookimpl
        def jno_lora_wrappers():
            return [Bad]
    """


@pytest.fixture
def mixed(model):
    """A model with a layer before the layer at which `Bad` fails."""
    return {"a": eqx.nn.LayerNorm(2), "b": model}


@pytest.mark.parametrize(
    ("fault", "error"),
    [("raise RuntimeError('boom')", "RuntimeError.*boom"), ("return np.ones(3)", "ValueError.*")],
)
def test_an_applies_to_that_fails_is_false_with_one_warning_unless_the_user_names_the_class(
    site, mixed, fault, error
):
    site.install_zoo()
    site.install("acme-lora", with_fault(fault))
    mixed["c"] = mixed["b"].embedding  # fails there, too
    for word, linear in [("dora", "DoRALinear"), ("auto", "LoRALinear")]:
        with pytest.warns(JnoLoraWarning) as caught:
            found = names(mixed, 1, wrapper=word)
        expected = dict.fromkeys(MODEL_LINEARS, linear)
        assert found == {"a": "Bad", **{f"b/{path}": name for path, name in expected.items()}}
        (message,) = (str(warning.message) for warning in caught)
        assert re.search(rf"Bad.applies_to raised {error}", message)
        assert "'b/embedding'" in message and "JNO_LORA_BLOCK=acme-lora" in message
    for wrapper in ("Bad", "acme-lora:Bad", one(Registry(), "Bad"), ["dora", "Bad"]):
        with pytest.raises(WrapperError, match=rf"Bad.applies_to raised {error}"):
            names(mixed, 1, wrapper=wrapper)


def test_a_why_not_that_raises_costs_its_reason_alone(site, mixed):
    site.install_zoo()
    site.install("acme-lora", with_fault("raise RuntimeError('boom')", "why_not"))
    for wrapper in ("dora", "Bad"):
        plan = plan_lora(mixed, 1, wrapper=wrapper)
        assert {row.path for row in plan.wrapped} >= {"a"}
        assert [row.reason for row in plan.rows if row.layer == "Embedding"] == [None]


def test_an_adapter_that_cannot_be_built_names_its_distribution(site, mixed):
    code = """
        def fail(*args, **kwargs):
            raise RuntimeError("boom")
        Acme = adapter("Acme", variant="lora", layer=eqx.nn.Embedding)
        Acme.__init__ = fail
        @hookimpl
        def jno_lora_wrappers():
            return [Acme]
    """
    site.install_zoo()
    site.install("acme-lora", code)
    with pytest.raises(WrapperError, match=r"(?s)'b/embedding'.*boom\nAcme is from acme-lora") as e:
        apply_lora(mixed, 1, key=jax.random.key(0), wrapper="lora")
    assert "JNO_LORA_BLOCK=acme-lora" in str(e.value)


class OwnLayer(eqx.Module):
    """A layer of a third library."""

    weight: object = None


def test_a_plugin_may_register_adapters_for_layers_of_other_libraries(site, model, monkeypatch):
    function = functools.singledispatch(default_adapters.dispatch(object))
    for module in ("extending", "_planning.specs"):  # nothing stays registered
        monkeypatch.setattr(f"jno.lora.{module}.default_adapters", function)
    code = f"""
        import sys
        from jno.lora.extending import default_adapters
        OwnLayer = sys.modules[{__name__!r}].OwnLayer
        Acme = adapter("Acme", layer=OwnLayer)
        default_adapters.register(OwnLayer)(lambda layer: (Acme,))
        @hookimpl
        def jno_lora_wrappers():
            return [Acme]
    """
    site.install_zoo()
    site.install("acme-lora", code)
    Registry().records()
    found = names([OwnLayer(model.head.weight), model.head], 1)
    assert found == {"0": "Acme", "1": "LoRALinear"}


@pytest.mark.parametrize("layer", ["eqx.nn.Embedding", "eqx.Module", "collections.abc.Callable"])
def test_a_plugin_that_registers_adapters_for_layers_of_equinox_is_left_out(site, model, layer):
    code = f"""
        import collections.abc
        from jno.lora.extending import default_adapters
        Acme = adapter("Acme", layer=eqx.nn.Embedding)
        default_adapters.register({layer})(lambda layer: (Acme,))
        @hookimpl
        def jno_lora_wrappers():
            return [Acme]
    """
    site.install_zoo()
    site.install("acme-lora", code)
    with pytest.warns(JnoLoraWarning, match="acme-lora.*failed.*adapters by default from jno-lora"):
        assert names(model, 1) == LINEARS


def test_default_adapters_are_registered_by_one_class():
    with pytest.raises(PluginError, match="a layer class of your own"):

        @default_adapters.register
        def _(layer: eqx.nn.Embedding):
            return ()
