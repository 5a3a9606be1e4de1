"""Layers that targets, specs and wrappers select, and arguments that are refused."""

import functools
import re

import equinox as eqx
import jax
import numpy as np
import pytest

from jno.lora import JnoLoraError, SelectionError, Spec, WrapperError, apply_lora, plan_lora

from .asking import wrapped
from .toys import (
    MODEL_LAYERS,
    MODEL_LINEARS,
    ToyBlock,
    ToyConv,
    ToyLinear,
    ToyScale,
    UserEmbedding,
    adapters_in,
)

# --- target


@pytest.mark.parametrize(
    ("target", "paths"),
    [
        (None, MODEL_LINEARS),
        ("encoder", ("encoder/0", "encoder/1")),
        ("^encoder/1$", ("encoder/1",)),
        ("er/0|head", ("encoder/0", "head")),
        ("", MODEL_LINEARS),
        (r"/\d+$", ("encoder/0", "encoder/1")),
    ],
)
def test_a_target_is_searched_in_the_slash_joined_path(model, target, paths):
    assert tuple(wrapped(model, 2, target=target, wrapper=ToyLinear)) == paths


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"target": "encoder/("}, "`target`"),
        ({"specs": [{"target": "head"}, {"target": "*"}]}, r"`specs\[1\]\['target'\]`"),
    ],
)
def test_an_invalid_regex_is_an_error_that_shows_it(model, arguments, name):
    with pytest.raises(SelectionError, match=rf"{name} is not a valid regex: '.*'.*backslash"):
        plan_lora(model, 1, wrapper=ToyLinear, **arguments)


def test_a_target_in_a_spec_must_be_a_string(model, unchecked):
    with pytest.raises(SelectionError, match=r"`specs\[0\]\['target'\]` must be a regex.*is 3"):
        plan_lora(model, 1, wrapper=ToyLinear, specs=[{"target": 3}])


def test_a_compiled_target_is_taken_in_a_spec(model):
    specs = [{"target": re.compile("HEAD", re.IGNORECASE)}]
    assert set(wrapped(model, 1, wrapper=ToyLinear, specs=specs)) == {"head"}


# --- rank


@pytest.mark.parametrize("rank", [-1, -7])
def test_a_negative_rank_is_an_error_anywhere(model, rank):
    with pytest.raises(SelectionError, match=f"rank of the call must be .*1, but is {rank}"):
        plan_lora(model, rank, wrapper=ToyLinear)
    with pytest.raises(SelectionError, match=f"rank of the call must be .*1, but is {rank}"):
        plan_lora(model, rank, wrapper=ToyLinear, specs=[{"rank": 1}])
    with pytest.raises(SelectionError, match=rf"rank of specs\[0\] must be .*1, but is {rank}"):
        plan_lora(model, 1, wrapper=ToyLinear, specs=[{"rank": rank}])


@pytest.mark.parametrize("rank", [0, 1.5, "4", True])
def test_the_rank_of_a_spec_is_an_integer_of_at_least_one(model, rank, unchecked):
    with pytest.raises(SelectionError, match=r"specs\[0\] must be an integer of at least 1") as e:
        plan_lora(model, 1, wrapper=ToyLinear, specs=[{"rank": rank}])
    assert repr(rank) in str(e.value)


def test_a_spec_without_rank_needs_one_from_the_call(model):
    with pytest.raises(SelectionError, match=r"rank of specs\[0\] must be .* but is missing"):
        plan_lora(model, specs=[{"wrapper": ToyLinear}])


@pytest.mark.parametrize("rank", [0, 1.5, "4", True, False, 0.0])
def test_the_rank_of_a_call_is_a_whole_number(model, rank, unchecked):
    with pytest.raises(SelectionError, match=f"rank of the call must be .* but is {rank!r}"):
        plan_lora(model, rank, wrapper=ToyLinear)


@pytest.mark.parametrize("rank", [{}, {"rank": None}])
def test_a_call_without_rank_is_told_that_it_is_missing(model, rank):
    with pytest.raises(SelectionError, match=r"rank of the call must be .* but is missing. Give"):
        plan_lora(model, wrapper=ToyLinear, **rank)


@pytest.mark.parametrize(
    ("alpha", "came"),
    [
        (float("nan"), "is nan"),
        (float("inf"), "is inf"),
        ("2", "is '2'"),
    ],
    ids=["nan", "inf", "text"],
)
def test_alpha_is_a_finite_number(model, alpha, came, unchecked):
    with pytest.raises(SelectionError, match=f"alpha of the call must be a finite .* {came}"):
        plan_lora(model, 1, alpha, wrapper=ToyLinear)


def test_an_integer_of_numpy_is_a_rank(model, unchecked):
    (row,) = plan_lora(model, np.int64(2), target="head", wrapper=ToyLinear).wrapped
    assert type(row.rank) is int and row.rank == 2


# --- specs: their form


@pytest.mark.parametrize(
    ("key", "nearest"),
    [("tagret", "target"), ("ranks", "rank"), ("wrappers", "wrapper"), ("Alpha", "alpha")],
)
def test_an_unknown_spec_key_is_an_error_with_the_nearest_name(model, key, nearest):
    specs = [{"target": "head"}, {key: 1, "optoins": {}}]
    with pytest.raises(SelectionError) as caught:
        plan_lora(model, 1, wrapper=ToyLinear, specs=specs)
    message = str(caught.value)
    assert f"specs[1], a spec, has no {key!r}" in message
    assert f"{key}: did you mean {nearest!r}?" in message
    assert "target, rank, alpha, wrapper, options" in message


def test_specs_must_not_be_empty(model):
    with pytest.raises(SelectionError, match=r"`specs` is empty. Give at least one"):
        plan_lora(model, 1, wrapper=ToyLinear, specs=[])


def test_one_dict_is_not_a_list_of_dicts(model, unchecked):
    with pytest.raises(SelectionError, match=r"must be a list of dicts.*specs=\[\{\.\.\.\}\]"):
        plan_lora(model, 1, wrapper=ToyLinear, specs={"target": "head"})


def test_a_spec_must_be_a_dict(model, unchecked):
    with pytest.raises(
        SelectionError, match=r"specs\[1\] must be a dict or a .*Spec`, but is 'head'"
    ):
        plan_lora(model, 1, wrapper=ToyLinear, specs=[{}, "head"])


def test_target_beside_specs_is_an_error_that_says_where_it_belongs(model):
    with pytest.raises(SelectionError, match=r"both given.*\"target\": 'head'"):
        plan_lora(model, 1, target="head", wrapper=ToyLinear, specs=[{}])


def test_specs_may_be_any_iterable_and_what_one_lacks_comes_from_the_call(model):
    specs = ({"target": name, **more} for name, more in [("head", {"alpha": 2}), ("enc", {})])
    rows = plan_lora(model, 3, 5.0, wrapper=ToyLinear, specs=specs).wrapped
    assert [(r.path, r.rank, r.alpha) for r in rows] == [
        ("encoder/0", 3, 5.0),
        ("encoder/1", 3, 5.0),
        ("head", 3, 2.0),
    ]


def test_a_spec_may_be_a_dataclass(model):
    specs = [Spec(target="head", alpha=2), {"target": "enc"}]
    rows = plan_lora(model, 3, 5.0, wrapper=ToyLinear, specs=specs).wrapped
    assert [(r.path, r.rank, r.alpha) for r in rows][::2] == [("encoder/0", 3, 5.0), ("head", 3, 2)]
    assert Spec(target="head", rank=2) == Spec(target="head", rank=2)


def test_every_field_of_a_spec_goes_before_that_of_the_call(model, getkey):
    class Starting(ToyScale):
        def __init__(self, base, rank, alpha, *, key, start=1.0):
            ToyScale.__init__(self, base, rank, alpha, key=key)
            self.gain = self.gain * start

    spec = Spec(target="head", rank=2, alpha=3, wrapper=Starting, options={"start": 4.0})
    call = {"rank": 7, "alpha": 7.0, "wrappers": ToyLinear, "options": {"none": 7}}
    adapted = apply_lora(model, key=getkey(), specs=[spec], **call)
    head = adapted.head
    assert (type(head), head.rank, head.alpha, head.gain[0]) == (Starting, 2, 3.0, 4.0)


def test_a_single_dataclass_is_not_taken_for_a_list(model, unchecked):
    with pytest.raises(SelectionError, match=r"A single spec is a list, too: specs=\[\{...\}\]"):
        plan_lora(model, specs=Spec(target="head", rank=2))


# --- wrapper


def test_an_empty_list_of_wrappers_is_an_error(model):
    with pytest.raises(SelectionError, match=r"`wrapper` is an empty list. Name at least one"):
        plan_lora(model, 1, wrapper=[])


def test_a_list_of_wrappers_is_in_order_of_priority(model):
    assert set(wrapped(model, 1, wrapper=[ToyScale, ToyLinear]).values()) == {ToyScale}
    assert set(wrapped(model, 1, wrapper=[ToyLinear, ToyScale]).values()) == {ToyLinear}
    both = wrapped(model, 1, wrapper=(UserEmbedding, ToyLinear))
    assert tuple(both) == MODEL_LAYERS and both["embedding"] is UserEmbedding


def test_an_instance_instead_of_a_class_is_an_error(model, getkey, unchecked):
    instance = ToyLinear(model.head, 1, 1.0, key=getkey())
    for wrapper in (instance, [instance]):
        with pytest.raises(WrapperError, match=r"is not a subclass of jno\.lora\.LoRAWrapper"):
            plan_lora(model, 1, wrapper=wrapper)


@pytest.mark.parametrize("wrapper", [3, {"a": 1}, object()])
def test_an_object_that_is_not_a_wrapper_is_refused_with_its_repr(model, wrapper, unchecked):
    with pytest.raises(JnoLoraError) as caught:
        plan_lora(model, 1, wrapper=wrapper)
    assert repr(wrapper) in str(caught.value) or "'a'" in str(caught.value)


def test_a_class_that_is_not_a_wrapper_is_refused(model, unchecked):
    with pytest.raises(WrapperError, match=r"Linear'> is not a subclass of jno.lora.LoRAWrapper"):
        plan_lora(model, 1, wrapper=eqx.nn.Linear)


# --- specs: their order


def test_the_first_spec_that_matches_wins(model):
    specs = [{"target": "encoder/0", "wrapper": ToyScale}, {"wrapper": ToyLinear}]
    rows = wrapped(model, 1, specs=specs)
    assert rows == {"encoder/0": ToyScale, "encoder/1": ToyLinear, "head": ToyLinear}


def test_a_spec_whose_wrapper_does_not_apply_does_not_match(model):
    specs = [{"wrapper": UserEmbedding}, {"target": "encoder", "wrapper": ToyLinear}]
    rows = wrapped(model, 1, specs=specs)
    assert tuple(rows) == ("embedding", "encoder/0", "encoder/1")


# --- containers


def test_a_claimed_container_hides_nothing_where_its_target_does_not_match(blocks):
    specs = [{"target": "blocks/0$", "wrapper": ToyBlock}, {"wrapper": ToyLinear}]
    assert wrapped(blocks, 1, specs=specs) == {
        "blocks/0": ToyBlock,
        "blocks/1/up": ToyLinear,
        "blocks/1/down": ToyLinear,
    }


def test_a_claimed_container_hides_nothing_where_the_mask_does_not_select_it(blocks):
    mask = jax.tree.map(lambda _: False, blocks)
    mask = eqx.tree_at(lambda m: m["blocks"][1].up.weight, mask, True)
    specs = [{"target": "blocks/0$", "wrapper": ToyBlock}, {"wrapper": ToyLinear}]
    plan = plan_lora(blocks, 1, specs=specs, mask=mask)
    assert [row.path for row in plan.wrapped] == ["blocks/1/up"]
    assert "blocks/0" in [row.path for row in plan.having("mask does not select")]


def test_an_earlier_spec_for_a_layer_wins_over_a_later_one_for_its_container(blocks):
    specs = [{"target": "blocks/0/up", "wrapper": ToyLinear}, {"wrapper": ToyBlock}]
    rows = wrapped(blocks, 1, specs=specs)
    assert rows == {"blocks/0/up": ToyLinear, "blocks/1": ToyBlock}


def test_an_earlier_spec_for_a_container_wins_over_a_later_one_for_its_layers(blocks):
    specs = [{"target": "blocks/1$", "wrapper": ToyBlock}, {"target": "up|^blocks/1$"}]
    rows = wrapped(blocks, 1, wrapper=ToyLinear, specs=specs)
    assert rows == {"blocks/0/up": ToyLinear, "blocks/1": ToyBlock}


def test_a_spec_whose_layers_all_lie_in_a_wrapped_container_is_told_so(blocks):
    specs = [{"wrapper": ToyBlock}, {"target": "blocks/0/up", "wrapper": ToyLinear}]
    with pytest.raises(SelectionError) as caught:
        apply_lora(blocks, 1, specs=specs, key=jax.random.key(0))
    message = str(caught.value)
    assert "specs[1] (target 'blocks/0/up', wrapper ToyLinear) selects no layer" in message
    assert "blocks/0/up: taken by specs[0], which wins, inside blocks/0" in message


# --- collections


def test_a_set_of_wrappers_has_no_order(model, unchecked):
    with pytest.raises(
        SelectionError, match=r"order of priority, and a set has none: .*ToyConv.*\. Give"
    ):
        plan_lora(model, 1, wrapper={ToyLinear, ToyConv})


@pytest.mark.parametrize("specs", [5, "head"])
def test_specs_are_a_list(model, specs, unchecked):
    with pytest.raises(SelectionError, match=f"`specs` must be a list of dicts, but is {specs!r}"):
        plan_lora(model, 1, specs=specs)


@pytest.mark.parametrize(
    "function", [plan_lora, functools.partial(apply_lora, key=jax.random.key(0))]
)
def test_a_single_spec_is_not_taken_for_a_list(model, function, unchecked):
    with pytest.raises(SelectionError, match=r"A single spec is a list, too: specs=\[\{...\}\]"):
        function(model, specs={"target": "head", "rank": 2})


# --- former words of arguments


def test_the_former_words_still_work(model, getkey):
    plan = plan_lora(model, 1, wrappers=ToyLinear, param_mask="encoder")
    assert [row.path for row in plan.wrapped] == ["encoder/0", "encoder/1"]
    adapted = apply_lora(model, 1, key=getkey(), wrappers=ToyLinear, param_mask="head")
    assert set(adapters_in(adapted)) == {"head"}


@pytest.mark.parametrize(("word", "former"), [("wrapper", "wrappers"), ("mask", "param_mask")])
def test_a_word_and_its_former_word_are_not_given_together(model, word, former):
    with pytest.raises(SelectionError, match=f"`{word}` and `{former}`") as caught:
        plan_lora(model, 1, **{word: None, former: None})
    assert isinstance(caught.value, TypeError)


def test_an_unknown_word_is_an_error(model):
    with pytest.raises(TypeError, match="wraper: did you mean 'wrapper'"):
        plan_lora(model, 1, wraper=ToyLinear)
