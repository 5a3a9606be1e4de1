"""Installed plugins with one fault each: no other plugin is hurt, and the user is told."""

import functools
import re
import warnings

import equinox as eqx
import jax
import pytest

import jno.lora
from jno.lora import (
    JnoLoraWarning,
    PluginError,
    Registry,
    SelectionError,
    WrapperError,
    apply_lora,
    plan_lora,
)
from jno.lora.extending import default_adapters

from .asking import one, run, statuses, wrapped
from .toys import MODEL_LINEARS

LINEARS = dict.fromkeys(MODEL_LINEARS, "LoRALinear")


def names(*args, **kwargs):
    return {path: cls.__name__ for path, cls in wrapped(*args, **kwargs).items()}


def words_of(registry):
    return {name: one(registry, name).__name__ for name in ("LoRALinear", "dora", "DoRA", "Acme")}


# --- reserved words


@pytest.mark.parametrize("name", ["lora", "LoRA", "DORA", "loralinear", "LORA_linear"])
def test_a_class_cannot_take_a_word_of_the_zoo_by_its_name(site, name):
    site.install_zoo()
    site.plugin("acme-lora", f'"{name}", variant="other"', '"Acme"')
    registry = Registry()
    assert [cls.__name__ for cls in registry.resolve("lora")] == ["LoRALinear", "LoRAConv"]
    assert words_of(registry)["dora"] == words_of(registry)["DoRA"] == "DoRALinear"
    assert one(registry, "LoRALinear").variant == "lora"
    assert one(registry, f"acme-lora:{name}").variant == "other"
    assert one(registry, "other").__name__ == name
    assert statuses(registry) == {"jno-lora-zoo": "loaded", "acme-lora": "loaded"}
    assert f'Write `wrapper="acme-lora:{name}"`' in run("doctor", code=1)


@pytest.mark.parametrize("name", ["lora_embedding", "OurEmbedding"])
def test_a_class_cannot_take_a_word_of_our_other_plugins_either(site, name):
    site.plugin("jno-lora-attention", '"OurEmbedding", variant="lora-embedding"')
    site.plugin("acme-lora", f'"{name}", variant="other"')
    registry = Registry()
    assert one(registry, "OurEmbedding") is one(registry, "lora-embedding")
    assert one(registry, "lora_embedding") is one(registry, "OurEmbedding")
    assert [*registry.clashes()] == [f"acme-lora:{name}"]


@pytest.mark.parametrize("name", ["auto", "All", "none", "all_linear"])
def test_a_class_named_by_a_word_of_the_core_has_no_bare_name(site, name):
    site.plugin("acme-lora", f'"{name}"')
    Registry().records()
    registry = Registry()
    registry.records()
    assert registry.clashes() == {f"acme-lora:{name}": "jno-lora itself"}
    assert one(Registry(), f"acme-lora:{name}").__name__ == name
    with pytest.raises((PluginError, SelectionError)):
        Registry().resolve(name)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ('"Bad", variant="auto"', "but is 'auto'"),
        ('"Bad", variant="All-Linear"', "but is 'All-Linear'"),
        ('"Bad", variant="zoo:lora"', "but is 'zoo:lora'"),
        ('"Bad", variant="-_"', "but is '-_'"),
        ('"Bad", auto=1.5', "`auto` must be True or False"),
    ],
)
def test_a_plugin_with_a_word_that_is_refused_is_left_out_alone(site, arguments, said):
    site.install_zoo()
    site.plugin("acme-lora", arguments)
    site.plugin("bolt-lora", '"Acme"')
    registry = Registry()
    with pytest.warns(JnoLoraWarning, match=rf"acme-lora 1.0[^$]*{said}"):
        assert statuses(registry)["acme-lora"] == "failed"
    assert words_of(registry)["Acme"] == "Acme"


def test_a_variant_that_cannot_be_read_hurts_its_plugin_alone(site):
    code = """
        class Raising:
            def __get__(self, instance, owner):
                raise RuntimeError("unreadable")
        @hookimpl
        def jno_lora_wrappers():
            return [adapter("Bad", variant=Raising())]
    """
    site.install("acme-lora", code)
    site.plugin("bolt-lora", '"Acme", variant="acme"')
    registry = Registry()
    with pytest.warns(JnoLoraWarning, match="acme-lora 1.0[^$]*unreadable"):
        assert one(registry, "acme").__name__ == "Acme"


def test_a_name_that_is_another_third_partys_variant_is_ambiguous(site):
    site.plugin("acme-lora", '"Twist"')
    site.plugin("bolt-lora", '"BoltLinear", variant="twist"')
    registry = Registry()
    with pytest.raises(PluginError, match=r'"acme-lora:Twist"[^$]*"bolt-lora:BoltLinear"'):
        registry.resolve("Twist")
    assert one(registry, "twist").__name__ == "BoltLinear"
    assert registry.clashes() == {"acme-lora:Twist": "bolt-lora"}


# --- ties within a variant


def test_the_zoo_wins_within_its_variants_on_the_layers_that_it_covers(site, model, getkey):
    site.install_zoo()
    site.plugin("acme-lora", '"Acme", variant="LoRA"', '"Around", variant="lora", layer=eqx.nn.MLP')
    model = {"model": model, "mlp": eqx.nn.MLP(2, 2, 2, 0, key=getkey())}
    with_plugin = names(model, 1, wrapper="lora")
    assert with_plugin == names(model, 1, wrapper="LoRALinear")
    assert with_plugin["mlp/layers/0"] == "LoRALinear"
    assert names(model, 1, wrapper="acme-lora:Acme")["model/head"] == "Acme"
    assert names(model, 1, wrapper=["Around", "lora"])["mlp"] == "Around"


@pytest.mark.parametrize("word", ["lora", "auto"])
def test_a_plugin_extends_a_variant_to_layers_that_nobody_covers(site, model, word):
    site.install_zoo()
    site.plugin("acme-lora", '"AcmeEmb", variant="lora", auto=True, layer=eqx.nn.Embedding')
    assert names(model, 1, wrapper=word) == {"embedding": "AcmeEmb", **LINEARS}
    ours = '"OurEmb", variant="lora", auto=True, layer=eqx.nn.Embedding'
    site.plugin("jno-lora-attention", ours)
    jno.lora.refresh()
    assert names(model, 1, wrapper=word) == {"embedding": "OurEmb", **LINEARS}


def test_a_tie_of_third_parties_offers_the_names_to_write(site, model):
    site.install_zoo()
    site.plugin("acme-lora", '"AcmeEmb", variant="Emb-1", layer=eqx.nn.Embedding')
    site.plugin("bolt-lora", '"BoltEmb", variant="emb1", layer=eqx.nn.Embedding')
    with pytest.raises(SelectionError) as caught:
        names(model, 1, wrapper="EMB1")
    for word, name in [("acme-lora:AcmeEmb", "AcmeEmb"), ("bolt-lora:BoltEmb", "BoltEmb")]:
        assert f'wrapper="{word}"' in str(caught.value)
        assert names(model, 1, wrapper=word) == {"embedding": name}


# --- adapters that raise

FAULTS = {
    "an error": ("raise RuntimeError('boom')", "RuntimeError.*boom"),
    "an array": ("return np.ones(3)", "ValueError.*array with more than one element"),
    "a traced bool": ("return jax.jit(ask)(1)", "TracerBoolConversionError"),
}


def with_fault(body, question="applies_to", variant="dora"):
    """A plugin whose class `Bad` fails on embeddings, after it has claimed a norm."""
    return f"""
        import jax, jax.numpy as jnp, numpy as np
        def fault(leaf):
            {body}
        def ask(number):
            return bool(number == 1)
        def answer(cls, leaf):
            return fault(leaf) if isinstance(leaf, eqx.nn.Embedding) else (
                isinstance(leaf, eqx.nn.LayerNorm) if {question!r} == "applies_to" else None
            )
        Bad = adapter("Bad", {variant!r}, auto=True, layer=eqx.nn.LayerNorm)
        Bad.{question} = classmethod(answer)
        @hookimpl
        def jno_lora_wrappers():
            return [Bad]
    """


@pytest.fixture
def mixed(model):
    """A model with a layer before the layer at which `Bad` fails."""
    return {"a": eqx.nn.LayerNorm(2), "b": model}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("word", ["dora", "auto"])
def test_an_applies_to_that_fails_leaves_the_class_out_with_one_warning(site, mixed, word, fault):
    site.install_zoo()
    code, error = FAULTS[fault]
    site.install("acme-lora", with_fault(code))
    with pytest.warns(JnoLoraWarning) as caught:
        found = names(mixed, 1, wrapper=word)
    assert found.keys() == {f"b/{path}" for path in MODEL_LINEARS}
    (message,) = (str(warning.message) for warning in caught)
    assert re.search(rf"Bad.applies_to raised {error}", message)
    assert "'b/embedding'" in message and "from acme-lora" in message
    assert "JNO_LORA_BLOCK=acme-lora" in message


@pytest.mark.parametrize("fault", FAULTS)
def test_an_adapter_that_the_user_names_raises(site, mixed, fault):
    site.install_zoo()
    code, error = FAULTS[fault]
    site.install("acme-lora", with_fault(code))
    for wrapper in ("Bad", "acme-lora:Bad", one(Registry(), "Bad"), ["dora", "Bad"]):
        with pytest.raises(WrapperError, match=rf"Bad.applies_to raised {error}"):
            names(mixed, 1, wrapper=wrapper)


@pytest.mark.parametrize("wrapper", ["dora", "auto", "Bad"])
def test_a_why_not_that_raises_costs_its_reason_alone(site, mixed, wrapper):
    site.install_zoo()
    site.install("acme-lora", with_fault("raise RuntimeError('boom')", "why_not"))
    model = {**mixed, "c": mixed["b"].embedding}
    plan = plan_lora(model, 1, wrapper=wrapper)
    assert {row.path for row in plan.wrapped} >= {"a"}
    assert [row.reason for row in plan.rows if row.layer == "Embedding"] == [None, None]


def test_a_call_that_finds_nothing_without_the_class_says_both(site, mixed):
    site.install("acme-lora", with_fault("raise RuntimeError('boom')", variant="acme"))
    for _ in range(2):  # each call says it
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            problem = plan_lora(mixed, 1, wrapper="acme").problem
        assert len(caught) == 1 and "boom" in str(caught[0].message)
        assert problem is not None and "selects no layer" in problem


class OddLayer(eqx.Module):
    """A layer whose class registers adapters by a function that fails."""

    weight: object = None


def test_a_registration_that_fails_is_a_warning(site, model):
    @default_adapters.register(OddLayer)
    def _(layer):
        raise RuntimeError("boom")

    site.install_zoo()
    model = [OddLayer(model.head.weight), OddLayer(model.head.weight), model]
    with pytest.warns(JnoLoraWarning, match=f"{__name__} registered.*OddLayer: it raised") as seen:
        assert names(model, 1) == {f"2/{path}": name for path, name in LINEARS.items()}
    assert len(seen) == 1


@pytest.mark.parametrize("layer", ["eqx.nn.Embedding", "eqx.Module", "collections.abc.Callable"])
def test_a_plugin_cannot_change_what_a_call_without_a_name_does(site, model, layer):
    answers = functools.singledispatch(default_adapters.dispatch(object))
    for module in ("extending", "_planning._walk"):
        site.monkeypatch.setattr(f"jno.lora.{module}.default_adapters", answers)
    site.install_zoo()
    module = site.install(
        "acme-lora",
        f"""
        import collections.abc
        from jno.lora.extending import default_adapters
        Acme = adapter("Acme", layer=eqx.nn.Embedding)
        default_adapters.register({layer})(lambda layer: (Acme,))
        @hookimpl
        def jno_lora_wrappers():
            return [Acme]
        """,
    )
    Registry().records()
    with pytest.warns(JnoLoraWarning, match=f"{module} registered .*is left out") as seen:
        assert names(model, 1) == LINEARS
    assert len(seen) == 1


class TheirLayer(eqx.Module):
    """A layer of a third library."""

    weight: object = None


def test_a_plugin_may_register_adapters_for_layers_of_other_libraries(site, model):
    site.install_zoo()
    site.install(
        "acme-lora",
        f"""
        import sys
        from jno.lora.extending import default_adapters
        TheirLayer = sys.modules[{__name__!r}].TheirLayer
        Acme = adapter("Acme", layer=TheirLayer)
        default_adapters.register(TheirLayer)(lambda layer: (Acme,))
        @hookimpl
        def jno_lora_wrappers():
            return [Acme]
        """,
    )
    Registry().records()
    assert names([TheirLayer(model.head.weight)], 1) == {"0": "Acme"}


@pytest.mark.parametrize(
    ("function", "fail"), [("stack_ndim", "classmethod(fail)"), ("__init__", "fail")]
)
def test_an_adapter_that_cannot_be_built_names_its_distribution(site, mixed, function, fail):
    site.install_zoo()
    site.install(
        "acme-lora",
        f"""
        def fail(*args, **kwargs):
            raise RuntimeError("boom")
        Acme = adapter("Acme", variant="lora", layer=eqx.nn.Embedding)
        Acme.{function} = {fail}
        @hookimpl
        def jno_lora_wrappers():
            return [Acme]
        """,
    )
    with pytest.raises(
        WrapperError, match=r"boom\nAcme is from acme-lora\. To do without this"
    ) as e:
        apply_lora(mixed, 1, key=jax.random.key(0), wrapper="lora")
    assert "JNO_LORA_BLOCK=acme-lora" in str(e.value)


# --- hooks that raise


@pytest.mark.parametrize("hook", ["jno_lora_wrappers()", "jno_lora_commands(group)", ""])
def test_a_hook_or_an_import_that_raises_names_its_distribution(site, hook):
    error = "raise RuntimeError('boom')"
    code = f"@hookimpl\ndef {hook}:\n    {error}\n" if hook else error
    site.install("acme-lora", code)
    site.plugin("bolt-lora", '"Acme"')
    text = run("--help")
    assert re.search(r"Left out.*acme-lora 1.0.*boom", text)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert one(Registry(), "Acme")
    assert all("acme-lora" in str(warning.message) for warning in caught)
    assert len(caught) == ("commands" not in hook)


@pytest.mark.parametrize("answer", ["raise RuntimeError('boom')", "candidates = 1 / 0", "return 3"])
def test_a_choice_that_fails_is_left_to_the_next_plugin(site, mixed, answer):
    site.install_zoo()
    site.plugin("acme-lora", '"Emb1", variant="emb", layer=eqx.nn.Embedding')
    site.plugin("bolt-lora", '"Emb2", variant="emb", layer=eqx.nn.Embedding')
    hook = "@hookimpl\ndef jno_lora_select(path, leaf, candidates):\n    {}\n"
    site.install("calm-lora", hook.format("return candidates[1]"))
    site.install("zany-lora", hook.format(answer))  # asked first
    model = {**mixed, "c": mixed["b"].embedding}
    registry = Registry()
    with pytest.warns(JnoLoraWarning, match=r"zany-lora 1.0[^$]*JNO_LORA_BLOCK=zany-lora") as seen:
        found = names(model, 1, wrapper="emb", registry=registry)
    assert found == {"b/embedding": "Emb2", "c": "Emb2"}
    assert len(seen) == 1


# --- the zoo itself


def test_names_are_listed_in_strict_mode_though_the_zoo_is_broken(site, monkeypatch):
    site.install("jno-lora-zoo", "raise RuntimeError('zoo is broken')")
    monkeypatch.setenv("JNO_LORA_STRICT", "1")
    with pytest.warns(JnoLoraWarning, match="zoo is broken"):
        assert "apply_lora" in dir(jno.lora)
    with pytest.raises(PluginError, match="zoo is broken"):
        Registry().resolve("LoRALinear")
