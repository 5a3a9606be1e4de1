"""Layers that targets, masks, specs and wrappers select, and arguments that are refused."""

import functools
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from jno.lora import JnoLoraError, JnoLoraWarning, Net, SelectionError, Spec, apply_lora, plan_lora

from .asking import wrapped
from .toys import (
    MODEL_LINEARS,
    ToyBlock,
    ToyConv,
    ToyLinear,
    ToyStacked,
    adapters_in,
    selected,
)

linear_layers = functools.partial(wrapped, rank=1, wrapper=ToyLinear)


def chosen(model, mask):
    return [*linear_layers(model, mask=mask)]


def nothing(model):
    return jax.tree.map(lambda _: False, model)


def test_a_target_is_searched_in_the_slash_joined_path(model):
    both, compiled = ("encoder/0", "head"), re.compile("HEAD", re.IGNORECASE)
    for target, paths in [("er/0|head", both), ("", MODEL_LINEARS), (compiled, ("head",))]:
        assert tuple(linear_layers(model, target=target)) == paths
        assert tuple(linear_layers(model, specs=[{"target": target}])) == paths


def linear(*sizes):
    return eqx.nn.Linear(*sizes, key=jr.key(0))


class Experts(eqx.Module):
    gate: eqx.nn.Linear
    experts: list


class Block(eqx.Module):
    attention: dict
    mixture: Experts
    router: dict


def language(blocks):
    square, narrow = linear(4, 4), linear(4, 2)
    experts = Experts(narrow, [square, square])
    block = Block({"gate": square, "q_proj": square}, experts, {"proj": narrow})
    return {"blocks": [block] * blocks, "lm_head": linear(4, 9)}


@pytest.fixture(scope="module")
def language_model():
    return language(2)


IN_A_BLOCK = ("attention/gate", "attention/q_proj", "mixture/experts/0", "mixture/experts/1")


def test_all_linear_leaves_out_the_head_and_routers(language_model):
    expected = [f"blocks/{n}/{path}" for n in (0, 1) for path in IN_A_BLOCK]
    assert [*linear_layers(language_model, target="all-linear")] == expected
    assert [*linear_layers(language_model, specs=[Spec(target="all-linear")])] == expected
    adapted = apply_lora(language_model, 2, key=jr.key(0), target="q_proj", wrapper=ToyLinear)
    plan = plan_lora(adapted, 2, target="all-linear", wrapper=ToyLinear)
    assert [row.path for row in plan.carriers] == expected[1::4]
    roles = {row.path: row.role for row in plan_lora(language_model, 2, wrapper=ToyLinear)}
    assert roles["lm_head"] == "output head" and roles["blocks/0/attention/gate"] is None
    assert roles["blocks/0/mixture/gate"] == roles["blocks/0/router/proj"] == "router"
    stack = eqx.filter_vmap(lambda key: eqx.nn.MLP(2, 2, 4, 1, key=key))(jr.split(jr.key(0), 3))
    model = {"blocks": stack, "head": linear(2, 2)}
    found = wrapped(model, 2, target="all-linear", wrapper=ToyStacked)
    assert [*found] == ["blocks/layers/0", "blocks/layers/1"]
    # One module in a list is not a repeated block.
    with pytest.raises(SelectionError, match=r"(?s)'all-linear'.*repeated blocks.*mixture/gate"):
        apply_lora(language(1), 2, key=jr.key(0), target="all-linear", wrapper=ToyLinear)


def test_names_are_the_ends_of_paths_and_taken_literally(language_model):
    found = linear_layers(language_model, target=["q_proj", "experts.1"])
    ends = ("attention/q_proj", "mixture/experts/1")
    assert [*found] == [f"blocks/{n}/{path}" for n in (0, 1) for path in ends]
    dotted = {"a.b": linear(2, 2), "axb": linear(2, 2)}
    assert [*linear_layers(dotted, target=("a.b",))] == ["a.b"]
    for name, near in [("q_porj", "q_proj"), ("experts/2", "experts/")]:
        with pytest.raises(SelectionError, match=rf"'{name}'.*\n.*paths are:\n  - blocks.*{near}"):
            apply_lora(language_model, 2, key=jr.key(0), target=["gate", name], wrapper=ToyLinear)
    with pytest.raises(SelectionError, match="'q_proj, gate'"):
        apply_lora(language_model, 2, key=jr.key(0), target=["q_proj", "gate"], wrapper=ToyConv)


def test_one_bool_may_stand_for_a_subtree_and_leaves_without_arrays_may_be_missing(
    model, unchecked
):
    mask = eqx.tree_at(lambda m: m.encoder, nothing(model), True)
    assert chosen(model, mask) == ["encoder/0", "encoder/1"]
    assert chosen(model, True) == list(MODEL_LINEARS) and chosen(model, False) == []
    net = Net(model).mask(eqx.tree_at(lambda m: (m.encoder, m.head), mask, (True, False))).freeze()
    assert selected(net.trainable) == {
        *("embedding/weight", "head/weight", "head/bias", "temperature")
    }
    for true in (np.True_, jnp.asarray(True), np.asarray(True)):
        assert chosen(model, eqx.tree_at(lambda m: m.head, nothing(model), true)) == ["head"]
    mask = jax.tree.map(lambda _: True, eqx.filter(model, eqx.is_array))
    assert chosen(model, mask) == list(MODEL_LINEARS)


def test_a_mask_of_another_structure_or_without_bools_is_refused_with_the_path(
    model, getkey, unchecked
):
    for value in (1, "yes", np.ones(2, bool), jnp.ones(())):
        mask = eqx.tree_at(lambda m: m.encoder[1].weight, nothing(model), value)
        with pytest.raises(SelectionError, match=r"one bool per leaf.*'encoder/1/weight'.*regex"):
            linear_layers(model, mask=mask)
    longer = eqx.tree_at(lambda m: m.encoder, model, [*model.encoder, model.head])
    lacking = eqx.tree_at(lambda m: m.head.bias, nothing(model), None)
    adapted = apply_lora(model, 1, key=getkey(), wrapper=ToyLinear, target="head")
    other = eqx.nn.Linear(3, 3, key=getkey())
    cases = [
        (model, nothing(longer), r"at 'encoder/2/weight'.*jax.tree.map\(lambda _: False, net.mod"),
        (model, lacking, "at 'head/bias'"),
        (adapted, nothing(model), "at 'head/weight'"),
        (model.head, nothing(other), "a class or a static field differs"),
    ]
    for tree, mask, where in cases:
        with pytest.raises(SelectionError, match=rf"(?s)mask has another structure.*{where}"):
            linear_layers(tree, mask=mask)


def test_a_pending_mask_is_never_dropped_and_warns_if_it_selects_nothing(model):
    net = Net(model).lora(1, wrapper=ToyLinear)
    net.mask("head")
    for control in (net.merge, net.unwrap):
        with pytest.raises(SelectionError, match="A mask is pending"):
            control()
    before = net.freeze().trainable
    with pytest.warns(JnoLoraWarning, match="selects nothing that could train"):
        net.mask("no such path").unfreeze()
    assert selected(net.trainable) == selected(before)
    net.merge()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": 0}, "rank of the call must be an integer of at least 1, but is 0"),
        ({"rank": True}, "rank of the call must .*, but is True"),
        ({"rank": 1.5, "specs": [{"rank": 1}]}, "rank of the call must .*, but is 1.5"),
        ({"specs": [{"rank": 0}]}, r"rank of specs\[0\] must be .*, but is 0"),
        ({"rank": None}, "must be .* of at least 1, but is missing"),
        ({"alpha": float("nan")}, "alpha of the call .* finite .* nan"),
        ({"target": "encoder/("}, r"`target` is not a valid regex: 'encoder/\('.*backslash"),
        ({"mask": "encoder/["}, r"`mask` is not a valid regex: 'encoder/\['.*backslash"),
        ({"specs": [{}, {"target": "*"}]}, r"`specs\[1\]\['target'\]` is not a valid regex: '\*'"),
        ({"target": []}, "target.* must be a regex"),
        ({"specs": [{"target": [3]}]}, "target.* must be a regex"),
        ({"specs": []}, "`specs` is empty"),
        ({"specs": [{}, {"tagret": 1}]}, r"specs\[1\], a spec, has no 'tagret'.*\n.*mean 'target'"),
        ({"specs": {"target": "head"}}, "must be a list of specs.*'target': 'head'"),
        ({"specs": 3}, "must be a list of specs.*is 3"),
        ({"specs": ["head"]}, r"specs\[0\] must be a dict or a `Spec`, but is 'head'"),
        ({"alpha": True}, "alpha of the call must be a finite number, but is True"),
        ({"target": "head", "specs": [{}]}, "both given.*\"target\": 'head'"),
        ({"options": [1]}, "must be a dict of keyword arguments"),
        ({"wrapper": []}, "must name an adapter"),
        ({"wrapper": {ToyLinear, ToyConv}}, "list adapters in order of priority: .*ToyConv"),
        ({"wrapper": [ToyLinear(linear(2, 2), 1, 1.0, key=jr.key(0))]}, "is not a subclass"),
    ],
)
def test_arguments_of_another_form_are_refused(model, arguments, message, unchecked):
    for function in (plan_lora, functools.partial(apply_lora, key=jr.key(0))):
        with pytest.raises(JnoLoraError, match=message):
            function(model, **{"rank": 1, "wrapper": ToyLinear, **arguments})


# A user of PEFT types PEFT's words first. The error says what they are called here.


LAYER = linear(3, 4)
NET = Net(LAYER)


@pytest.mark.parametrize(
    ("call", "facts"),
    [
        (lambda: NET.lora(r=8, lora_alpha=16), ["net.lora()", "r is rank", "lora_alpha is alpha"]),
        (lambda: NET.lora(target_modules=["q"]), ["target_modules is target"]),
        (lambda: NET.lora(use_dora=True), ['wrapper="dora"']),
        (lambda: NET.lora(rnak=8), ["rnak: did you mean 'rank'?"]),
        (lambda: NET.plan(r=8), ["r is rank"]),
        (lambda: apply_lora(LAYER, r=8), ["r is rank"]),
        (lambda: plan_lora(LAYER, r=8), ["r is rank"]),
        (lambda: NET.lora(specs=[{"r": 8, "wraper": 1}]), ["specs[0]", "r is rank", "'wrapper'"]),
        (lambda: NET.lora(specs=[{0: 1}]), ["specs[0], a spec, has no 0."]),
    ],
)
def test_an_unknown_argument_is_explained(call, facts, unchecked):
    with pytest.raises(SelectionError) as error:
        call()
    assert all(fact in str(error.value) for fact in facts)
    assert isinstance(error.value, TypeError) or "specs[0]" in facts[0]


def test_specs_may_be_any_iterable_and_what_a_spec_lacks_comes_from_the_call(model, unchecked):
    dicts = ({"target": name, **more} for name, more in [("head", {"alpha": 2}), ("enc", {})])
    for specs in (dicts, [Spec(target="head", alpha=2), {"target": "enc"}]):
        rows = plan_lora(model, np.int64(3), 5.0, wrapper=ToyLinear, specs=specs).wrapped
        assert type(rows[0].rank) is int
        assert [(r.path, r.rank, r.alpha) for r in rows] == [
            ("encoder/0", 3, 5.0),
            ("encoder/1", 3, 5.0),
            ("head", 3, 2.0),
        ]


OF_LAYERS = {"blocks/1/up": ToyLinear, "blocks/1/down": ToyLinear}


@pytest.mark.parametrize(
    ("specs", "expected"),
    [
        # A claimed container hides nothing where its target does not match.
        ([("blocks/0$", ToyBlock), ("", ToyLinear)], {"blocks/0": ToyBlock, **OF_LAYERS}),
        # A list of wrappers is in order of priority.
        ([("blocks/1", [ToyBlock, ToyLinear])], {"blocks/1": ToyBlock}),
        ([("blocks/1", [ToyLinear, ToyBlock])], OF_LAYERS),
        # An earlier spec for a layer wins over a later spec for its container, and the reverse.
        (
            [("blocks/0/up", ToyLinear), ("", ToyBlock)],
            {"blocks/0/up": ToyLinear, "blocks/1": ToyBlock},
        ),
        (
            [("blocks/1$", ToyBlock), ("up|^blocks/1$", ToyLinear)],
            {"blocks/0/up": ToyLinear, "blocks/1": ToyBlock},
        ),
    ],
)
def test_a_container_and_its_layers(blocks, specs, expected):
    specs = [{"target": target, "wrapper": wrapper} for target, wrapper in specs]
    assert wrapped(blocks, 1, specs=specs) == expected


def test_layers_that_the_mask_leaves_out_hide_no_container(blocks):
    mask = eqx.tree_at(lambda m: m["blocks"][0].down.bias, nothing(blocks), True)
    specs = [{"target": "up", "wrapper": ToyLinear}, {"wrapper": ToyBlock}]
    assert wrapped(blocks, 1, specs=specs, mask=mask) == {"blocks/0": ToyBlock}


def test_the_former_words_still_work_alone(model, getkey):
    adapted = apply_lora(model, 1, key=getkey(), wrappers=ToyLinear, param_mask="encoder")
    assert set(adapters_in(adapted)) == {"encoder/0", "encoder/1"}
    for word, before in [("wrapper", "wrappers"), ("mask", "param_mask")]:  # both
        with pytest.raises(SelectionError, match=f"no '{before}'"):
            plan_lora(model, 1, **{word: None, before: None})
