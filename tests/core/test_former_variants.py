"""Adapters that got a variant of their own: the old word finds them for one more release."""

import re

import equinox as eqx
import pytest

from jno.lora import JnoLoraWarning, Net, Registry, SelectionError, apply_lora, plan_lora, register

from .asking import wrapped
from .toys import MODEL_LINEARS, ToyConv, ToyLinear, UserEmbedding, adapters_in


class Linear(ToyLinear):
    variant = "toy"


class Embedding(UserEmbedding):
    variant = "toy-embedding"
    former_variant = "toy"


class Norm(ToyLinear):
    """For a kind of layer that the models here lack."""

    variant = "toy-norm"
    former_variant = "toy"

    @classmethod
    def applies_to(cls, leaf):
        return isinstance(leaf, eqx.nn.LayerNorm)


@pytest.fixture(autouse=True)
def _registered(registry):
    for cls in (Linear, Embedding, Norm, ToyConv):
        register(cls)


OLD_WORD = r"(?s)former variant.*embedding: wrapper=\"toy-embedding\", not 'toy'"


def of_old_word(*args, **kwargs):
    """What is wrapped by a call that warns once, about the old word."""
    with pytest.warns(JnoLoraWarning, match=OLD_WORD) as caught:
        found = wrapped(*args, **kwargs)
    assert len(caught) == 1
    return found


@pytest.mark.parametrize("word", ["toy", "Toy", "t-oy"])
def test_a_call_that_selects_something_gets_no_more_layers(model, word):
    assert wrapped(model, 1, wrappers=word) == dict.fromkeys(MODEL_LINEARS, Linear)
    assert wrapped(model, 1, wrappers=word, target="head|embed") == {"head": Linear}


def test_the_new_word_finds_the_adapter_without_a_warning(model):
    assert wrapped(model, 1, wrappers="toy-embedding") == {"embedding": Embedding}
    both = wrapped(model, 1, wrappers=["toy", "toy-embedding"])
    assert both == {"embedding": Embedding, **dict.fromkeys(MODEL_LINEARS, Linear)}


@pytest.mark.parametrize("word", ["toy", "Toy", "t-oy"])
def test_the_old_word_finds_the_adapter_where_it_selects_nothing_else(model, word):
    assert of_old_word(model, 1, wrappers=word, target="embed") == {"embedding": Embedding}


def test_the_adapters_are_built_with_one_warning_at_the_line_of_the_user(model, getkey):
    with pytest.warns(JnoLoraWarning, match=OLD_WORD) as caught:
        adapted = apply_lora(model, 1, key=getkey(), wrappers="toy", target="embed")
    assert len(caught) == 1 and caught[0].filename == __file__
    assert type(adapters_in(adapted)["embedding"]) is Embedding
    with pytest.warns(JnoLoraWarning, match=OLD_WORD) as caught:
        net = Net(model).lora(1, wrapper="toy", target="embed")
    assert len(caught) == 1 and {*adapters_in(net.module)} == {"embedding"}


def test_a_mask_that_leaves_nothing_else_counts_as_selecting_nothing_else(model):
    assert of_old_word(model, 1, wrappers="toy", param_mask="embed") == {"embedding": Embedding}
    assert wrapped(model, 1, wrappers="toy", param_mask="embed|head") == {"head": Linear}


@pytest.mark.parametrize("wrapper", ["toy", ["ToyConv", "toy"], ["toy", ToyConv]])
def test_each_spec_is_looked_at_alone(model, wrapper):
    specs = [{"target": "embed", "wrapper": wrapper, "rank": 2}, {"target": "", "wrapper": "toy"}]
    assert of_old_word(model, 1, specs=specs) == {
        "embedding": Embedding,
        **dict.fromkeys(MODEL_LINEARS, Linear),
    }
    with pytest.warns(JnoLoraWarning):
        rows = plan_lora(model, 1, specs=specs).wrapped
    assert {row.path: row.rank for row in rows}["embedding"] == 2


def test_classes_and_names_that_are_listed_are_asked_for_and_cause_no_warning(model):
    for listed in (Embedding, "Embedding", "(in-process):Embedding"):
        found = wrapped(model, 1, wrappers=["toy", listed], target="embed")
        assert found == {"embedding": Embedding}


def test_an_old_word_that_selects_nothing_either_is_an_error_that_names_the_new_words(getkey):
    model = {"conv": eqx.nn.Conv1d(2, 2, 1, key=getkey())}
    problem = plan_lora(model, 1, wrappers="toy").problem
    assert problem is not None and "wrapper Linear)" in problem
    assert 'another variant than before: wrapper="toy-embedding", wrapper="toy-norm".' in problem
    with pytest.raises(SelectionError, match=re.escape(problem)):
        apply_lora(model, 1, wrappers="toy", key=getkey())


def test_a_word_that_no_other_adapter_has_is_found_with_the_warning_too(model):
    registry = Registry(discover=False)
    registry.register(Embedding)
    assert registry.resolve("toy") == (Embedding,)
    assert of_old_word(model, 1, wrappers="toy", registry=registry) == {"embedding": Embedding}


def test_a_layer_that_carries_an_adapter_counts_as_selected(model, getkey):
    adapted = apply_lora(model, 1, key=getkey(), wrappers="toy")
    plan = plan_lora(adapted, 1, wrappers="toy")  # a warning would be an error
    assert {row.path for row in plan.having("already adapted")} == {*MODEL_LINEARS}
    assert plan.wrapped == ()


def test_a_call_with_two_old_words_has_one_warning(model):
    model = {"model": model, "norm": eqx.nn.LayerNorm(3)}
    specs = [{"target": "embed", "wrapper": "toy"}, {"target": "norm", "wrapper": "toy"}]
    assert of_old_word(model, 1, specs=specs) == {"model/embedding": Embedding, "norm": Norm}


class TheirEmbedding(Embedding):
    variant = "their-embedding"


def test_a_third_party_with_an_old_word_of_ours_does_not_make_the_word_ambiguous(site, model):
    entries = f"from {__name__} import Embedding as E, TheirEmbedding as T"
    for distribution, cls in [("jno-lora-attention", "E"), ("acme-lora", "T")]:
        hook = "@hookimpl\ndef jno_lora_wrappers():"
        site.install(distribution, f"{entries}\n{hook}\n    return [{cls}]\n")
    registry = Registry()
    assert registry.resolve("toy") == (Embedding, TheirEmbedding)
    found = of_old_word(model, 1, wrappers="toy", registry=registry)
    assert found == {"embedding": Embedding}


def test_auto_beside_a_variant_is_not_taken_for_an_old_word(site, model):
    site.install_zoo()
    code = """
        Embedding = adapter("OurEmbedding", "lora-embedding", auto=True, layer=eqx.nn.Embedding)
        Embedding.former_variant = "lora"
        @hookimpl
        def jno_lora_wrappers():
            return [Embedding]
    """
    site.install("jno-lora-attention", code)
    found = wrapped(model, 1, wrappers=["lora", "auto"])  # a warning would be an error
    names = {path: cls.__name__ for path, cls in found.items()}
    assert names == {"embedding": "OurEmbedding", **dict.fromkeys(MODEL_LINEARS, "LoRALinear")}


def test_auto_and_explicit_classes_know_no_old_words(model):
    assert wrapped(model, 1, wrappers=[Linear]) == dict.fromkeys(MODEL_LINEARS, Linear)
    assert "toy-embedding" not in (plan_lora(model, 1, wrappers=ToyConv).problem or "")
