"""Layers that targets, masks, specs and wrappers select, and arguments that are refused."""

import functools
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import pytest

from jno.lora import JnoLoraError, JnoLoraWarning, Net, SelectionError, Spec, apply_lora, plan_lora

from .asking import wrapped
from .toys import (
    MODEL_LAYERS,
    MODEL_LINEARS,
    Model,
    ToyBlock,
    ToyConv,
    ToyLinear,
    ToyScale,
    ToyStacked,
    UserEmbedding,
    adapters_in,
    selected,
    slashed,
)

linear_layers = functools.partial(wrapped, rank=1, wrapper=ToyLinear)


def chosen(model, mask):
    return [*linear_layers(model, mask=mask)]


def nothing(model):
    return jax.tree.map(lambda _: False, model)


# --- target: a regex


@pytest.mark.parametrize(
    ("target", "paths"),
    [
        (None, MODEL_LINEARS),
        ("^encoder/1$", ("encoder/1",)),
        ("er/0|head", ("encoder/0", "head")),
        ("", MODEL_LINEARS),
        (r"/\d+$", ("encoder/0", "encoder/1")),
        (re.compile("HEAD", re.IGNORECASE), ("head",)),
    ],
)
def test_a_target_is_searched_in_the_slash_joined_path(model, target, paths):
    assert tuple(linear_layers(model, target=target)) == paths
    assert tuple(linear_layers(model, specs=[{"target": target}])) == paths


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"target": "encoder/("}, "`target`"),
        ({"mask": "encoder/["}, "`mask`"),
        ({"specs": [{"target": "head"}, {"target": "*"}]}, r"`specs\[1\]\['target'\]`"),
    ],
)
def test_an_invalid_regex_is_an_error_that_shows_it(model, arguments, name):
    with pytest.raises(SelectionError, match=rf"{name} is not a valid regex: '.*'.*backslash"):
        linear_layers(model, **arguments)


@pytest.mark.parametrize("target", [[], [3], {"q_proj"}, 3])
def test_other_targets_are_refused(model, target, unchecked):
    for arguments in ({"target": target}, {"specs": [{"target": target}]}):
        with pytest.raises(SelectionError, match=r"target.* must be a regex"):
            linear_layers(model, **arguments)


# --- target: names, and the linear layers in repeated blocks


def linear(*sizes):
    return eqx.nn.Linear(*sizes, key=jr.key(0))


class Experts(eqx.Module):
    gate: eqx.nn.Linear
    experts: list

    def __init__(self):
        self.gate, self.experts = linear(4, 2), [linear(4, 4), linear(4, 4)]


class Attention(eqx.Module):
    q_proj: eqx.nn.Linear
    gate: eqx.nn.Linear

    def __init__(self):
        self.q_proj, self.gate = linear(4, 4), linear(4, 4)


class Router(eqx.Module):
    proj: eqx.nn.Linear


class Block(eqx.Module):
    attention: Attention
    mixture: Experts
    router: Router

    def __init__(self):
        self.attention, self.mixture, self.router = Attention(), Experts(), Router(linear(4, 2))


class LanguageModel(eqx.Module):
    table: eqx.nn.Embedding
    blocks: list
    lm_head: eqx.nn.Linear

    def __init__(self, blocks=2):
        self.table = eqx.nn.Embedding(9, 4, key=jr.key(0))
        self.blocks, self.lm_head = [Block() for _ in range(blocks)], linear(4, 9)


@pytest.fixture(scope="module")
def language_model():
    return LanguageModel()


IN_A_BLOCK = ("attention/q_proj", "attention/gate", "mixture/experts/0", "mixture/experts/1")


def test_all_linear_leaves_out_the_head_and_routers(language_model):
    expected = [f"blocks/{n}/{path}" for n in (0, 1) for path in IN_A_BLOCK]
    assert [*linear_layers(language_model, target="all-linear")] == expected
    assert [*linear_layers(language_model, specs=[Spec(target="all-linear")])] == expected
    adapted = apply_lora(language_model, 2, key=jr.key(0), target="q_proj", wrapper=ToyLinear)
    plan = plan_lora(adapted, 2, target="all-linear", wrapper=ToyLinear)
    found = [row.path for row in plan.having("already adapted") if row.spec is not None]
    assert found == expected[::4]
    # One module in a list is not a repeated block.
    assert not linear_layers(LanguageModel(blocks=1), target="all-linear")


def test_all_linear_finds_the_layers_of_a_stack():
    stack = eqx.filter_vmap(lambda key: eqx.nn.MLP(2, 2, 4, 1, key=key))(jr.split(jr.key(0), 3))
    model = {"blocks": stack, "head": linear(2, 2)}
    found = wrapped(model, 2, target="all-linear", wrapper=ToyStacked)
    assert [*found] == ["blocks/layers/0", "blocks/layers/1"]


def test_a_model_without_blocks_has_no_all_linear():
    mlp = eqx.nn.MLP(2, 2, 4, 2, key=jr.key(0))
    with pytest.raises(SelectionError, match=r"(?s)'all-linear'.*repeated blocks.*layers/0"):
        apply_lora(mlp, 2, key=jr.key(0), target="all-linear", wrapper=ToyLinear)


def test_names_are_the_ends_of_paths_and_taken_literally(language_model):
    found = linear_layers(language_model, target=["q_proj", "experts.1"])
    ends = ("attention/q_proj", "mixture/experts/1")
    assert [*found] == [f"blocks/{n}/{path}" for n in (0, 1) for path in ends]
    dotted = {"a.b": linear(2, 2), "axb": linear(2, 2)}
    assert [*linear_layers(dotted, target=("a.b",))] == ["a.b"]


@pytest.mark.parametrize(("name", "near"), [("q_porj", "q_proj"), ("experts/2", "experts/")])
def test_a_name_without_a_layer_is_an_error_that_names_the_nearest(language_model, name, near):
    with pytest.raises(SelectionError, match=rf"'{name}'.*\n.*paths are:\n  - blocks.*{near}"):
        apply_lora(language_model, 2, key=jr.key(0), target=["gate", name], wrapper=ToyLinear)


def test_a_plan_names_heads_and_routers(language_model):
    roles = {row.path: row.role for row in plan_lora(language_model, 2, wrapper=ToyLinear)}
    assert roles["lm_head"] == "output head"
    assert roles["blocks/0/mixture/gate"] == roles["blocks/0/router/proj"] == "router"
    assert roles["blocks/0/attention/gate"] is None


# --- masks

FIXED = Model(jax.random.key(1))
PATHS = [slashed(keys) for keys, _ in jtu.tree_leaves_with_path(FIXED)]


@pytest.mark.parametrize("pattern", ["encoder", "weight", "0/bias", "^head", "bias|temp", "^$"])
def test_a_layer_is_selected_by_any_of_its_leaves_and_a_regex_by_their_paths(pattern):
    true = {path for path in PATHS if re.search(pattern, path)}
    expected = [p for p in MODEL_LINEARS if any(leaf.startswith(f"{p}/") for leaf in true)]
    bools = [path in true for path in PATHS]
    assert chosen(FIXED, pattern) == expected
    assert chosen(FIXED, jtu.tree_unflatten(jtu.tree_structure(FIXED), bools)) == expected


def test_one_bool_may_stand_for_a_subtree(model):
    mask = eqx.tree_at(lambda m: m.encoder, nothing(model), True)
    assert chosen(model, mask) == ["encoder/0", "encoder/1"]
    assert chosen(model, True) == list(MODEL_LINEARS) and chosen(model, False) == []
    assert chosen({"a": model, "b": model.head}, {"a": False, "b": True}) == ["b"]
    net = Net(model).mask(eqx.tree_at(lambda m: (m.encoder, m.head), mask, (True, False))).freeze()
    assert selected(net.trainable) == {
        *("embedding/weight", "head/weight", "head/bias", "temperature"),
    }


@pytest.mark.parametrize("true", [np.True_, jnp.asarray(True), np.asarray(True)])
def test_scalar_bools_of_numpy_and_jax_are_bools(model, true, unchecked):
    assert chosen(model, eqx.tree_at(lambda m: m.head, nothing(model), true)) == ["head"]


def test_a_mask_may_leave_out_leaves_that_are_not_arrays(model):
    mask = jax.tree.map(lambda _: True, eqx.filter(model, eqx.is_array))
    assert chosen(model, mask) == list(MODEL_LINEARS)


@pytest.mark.parametrize("value", [1, "yes", np.ones(2, bool), jnp.ones(())])
def test_a_leaf_that_is_not_a_bool_is_refused_with_its_path(model, value, unchecked):
    mask = eqx.tree_at(lambda m: m.encoder[1].weight, nothing(model), value)
    with pytest.raises(SelectionError, match=r"one bool per leaf.*'encoder/1/weight'.*regex"):
        linear_layers(model, mask=mask)


def test_a_mask_of_another_structure_is_refused_with_the_path(model, getkey):
    longer = eqx.tree_at(lambda m: m.encoder, model, [*model.encoder, model.head])
    lacking = eqx.tree_at(lambda m: m.head.bias, nothing(model), None)
    other = eqx.nn.Linear(3, 3, key=getkey())
    cases = [
        (model, nothing(longer), r"at 'encoder/2/weight'.*jax.tree.map\(lambda _: False, net.mod"),
        (model, lacking, "at 'head/bias'"),
        (model.head, nothing(other), "a class or a static field differs"),
    ]
    for tree, mask, where in cases:
        with pytest.raises(SelectionError, match=rf"(?s)mask has another structure.*{where}"):
            linear_layers(tree, mask=mask)
    net = Net(model).lora(1, wrapper=ToyLinear, target="head")
    with pytest.raises(SelectionError, match=r"mask has another structure.*'head/weight'"):
        net.mask(nothing(model))


def test_a_pending_mask_is_never_dropped_and_warns_if_it_selects_nothing(model):
    net = Net(model).lora(1, wrapper=ToyLinear)
    net.mask("head")
    for control in (net.merge, net.unwrap):
        with pytest.raises(SelectionError, match="A mask is pending"):
            control()
    net.freeze()
    before = net.trainable
    for control in ("freeze", "unfreeze"):
        with pytest.warns(JnoLoraWarning, match="selects nothing that could train"):
            getattr(net.mask("no such path"), control)()
    assert jax.tree.leaves(net.trainable) == jax.tree.leaves(before)
    net.merge()


# --- rank and alpha


@pytest.mark.parametrize("rank", [-1, 0, 1.5, "4", True, 0.0])
def test_a_rank_is_a_whole_number_of_at_least_one(model, rank, unchecked):
    of_call = rf"rank of the call must be an integer of at least 1, but is {rank!r}"
    for specs in (None, [{"rank": 1}]):
        with pytest.raises(SelectionError, match=of_call):
            plan_lora(model, rank, wrapper=ToyLinear, specs=specs)
    with pytest.raises(SelectionError, match=rf"rank of specs\[0\] must be .*, but is {rank!r}"):
        linear_layers(model, specs=[{"rank": rank}])


def test_a_missing_rank_is_an_error_and_an_integer_of_numpy_is_a_rank(model, unchecked):
    for arguments in ({}, {"rank": None}, {"specs": [{"target": "head"}]}):
        with pytest.raises(SelectionError, match=r"must be .* of at least 1, but is missing"):
            plan_lora(model, wrapper=ToyLinear, **arguments)
    (row,) = plan_lora(model, np.int64(2), target="head", wrapper=ToyLinear).wrapped
    assert type(row.rank) is int and row.rank == 2


@pytest.mark.parametrize("alpha", [float("nan"), float("inf"), "2"])
def test_alpha_is_a_finite_number(model, alpha, unchecked):
    with pytest.raises(SelectionError, match=f"alpha of the call .* finite .* {alpha!r}"):
        plan_lora(model, 1, alpha, wrapper=ToyLinear)


# --- specs


@pytest.mark.parametrize(("key", "nearest"), [("tagret", "target"), ("wrappers", "wrapper")])
def test_an_unknown_spec_key_is_an_error_with_the_nearest_name(model, key, nearest):
    with pytest.raises(SelectionError, match=rf"specs\[1\], a spec, has no '{key}'") as caught:
        linear_layers(model, specs=[{"target": "head"}, {key: 1, "optoins": {}}])
    assert f"{key}: did you mean {nearest!r}?" in str(caught.value)
    assert "target, rank, alpha, wrapper, options" in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"specs": []}, "`specs` is empty"),
        ({"specs": {"target": "head"}}, "must be a list of specs.*'target': 'head'"),
        ({"specs": Spec(target="head")}, "must be a list of specs"),
        ({"specs": "head"}, "must be a list of specs"),
        ({"target": "head", "specs": [{}]}, "both given.*\"target\": 'head'"),
        ({"options": [1]}, "must be a dict of keyword arguments"),
        ({"wrapper": []}, "must name an adapter"),
        ({"wrapper": {ToyLinear, ToyConv}}, "list adapters in order of priority: .*ToyConv"),
        ({"wrapper": {"a": 1}}, "in order of priority: .*'a'"),
        ({"wrapper": 3}, "3 is not a subclass of jno.lora.LoRAWrapper"),
        ({"wrapper": eqx.nn.Linear}, "Linear'> is not a subclass"),
        ({"wrapper": [ToyLinear(linear(2, 2), 1, 1.0, key=jr.key(0))]}, "is not a subclass"),
    ],
)
def test_arguments_of_another_form_are_refused(model, arguments, message, unchecked):
    for function in (plan_lora, functools.partial(apply_lora, key=jr.key(0))):
        with pytest.raises(JnoLoraError, match=message):
            function(model, 1, **{"wrapper": ToyLinear, **arguments})


def test_specs_may_be_any_iterable_and_what_a_spec_lacks_comes_from_the_call(model):
    dicts = ({"target": name, **more} for name, more in [("head", {"alpha": 2}), ("enc", {})])
    for specs in (dicts, [Spec(target="head", alpha=2), {"target": "enc"}]):
        rows = plan_lora(model, 3, 5.0, wrapper=ToyLinear, specs=specs).wrapped
        assert [(r.path, r.rank, r.alpha) for r in rows] == [
            ("encoder/0", 3, 5.0),
            ("encoder/1", 3, 5.0),
            ("head", 3, 2.0),
        ]
    assert Spec(target="head", rank=2) == Spec(target="head", rank=2)


def test_every_field_of_a_spec_goes_before_the_argument_of_the_call(model, getkey):
    class Starting(ToyScale):
        def __init__(self, base, rank, alpha, *, key, start=1.0):
            ToyScale.__init__(self, base, rank, alpha, key=key)
            self.gain = self.gain * start

    spec = Spec(target="head", rank=2, alpha=3, wrapper=Starting, options={"start": 4.0})
    call = {"rank": 7, "alpha": 7.0, "wrappers": ToyLinear, "options": {"none": 7}}
    head = apply_lora(model, key=getkey(), specs=[spec], **call).head
    assert (type(head), head.rank, head.alpha, head.gain[0]) == (Starting, 2, 3.0, 4.0)


# --- wrappers, and the order of specs


def test_a_list_of_wrappers_is_in_order_of_priority(model, blocks):
    assert set(wrapped(model, 1, wrapper=[ToyScale, ToyLinear]).values()) == {ToyScale}
    both = wrapped(model, 1, wrapper=(UserEmbedding, ToyLinear))
    assert tuple(both) == MODEL_LAYERS and both["embedding"] is UserEmbedding
    assert set(wrapped(blocks, 1, wrapper=[ToyLinear, ToyBlock]).values()) == {ToyLinear}
    assert set(wrapped(blocks, 1, wrapper=[ToyBlock, ToyLinear]).values()) == {ToyBlock}


def test_the_first_spec_that_matches_wins(model):
    specs = [{"target": "encoder/0", "wrapper": ToyScale}, {"wrapper": ToyLinear}]
    rows = wrapped(model, 1, specs=specs)
    assert rows == {"encoder/0": ToyScale, "encoder/1": ToyLinear, "head": ToyLinear}
    # A spec whose wrapper does not apply does not match.
    specs = [{"wrapper": UserEmbedding}, {"target": "encoder", "wrapper": ToyLinear}]
    assert tuple(wrapped(model, 1, specs=specs)) == ("embedding", "encoder/0", "encoder/1")


OF_LAYERS = {"blocks/1/up": ToyLinear, "blocks/1/down": ToyLinear}


@pytest.mark.parametrize(
    ("specs", "expected"),
    [
        # A claimed container hides nothing where its target does not match.
        ([("blocks/0$", ToyBlock), ("", ToyLinear)], {"blocks/0": ToyBlock, **OF_LAYERS}),
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


def test_a_claimed_container_hides_nothing_where_the_mask_does_not_select_it(blocks):
    mask = eqx.tree_at(lambda m: m["blocks"][1].up.weight, nothing(blocks), True)
    specs = [{"target": "blocks/0$", "wrapper": ToyBlock}, {"wrapper": ToyLinear}]
    plan = plan_lora(blocks, 1, specs=specs, mask=mask)
    assert [row.path for row in plan.wrapped] == ["blocks/1/up"]
    assert "blocks/0" in [row.path for row in plan.having("mask does not select")]


# --- former words of arguments


def test_the_former_words_still_work_alone(model, getkey):
    found = plan_lora(model, 1, wrappers=ToyLinear, param_mask="encoder").wrapped
    assert [row.path for row in found] == ["encoder/0", "encoder/1"]
    adapted = apply_lora(model, 1, key=getkey(), wrappers=ToyLinear, param_mask="head")
    assert set(adapters_in(adapted)) == {"head"}
    for word, former in [("wrapper", "wrappers"), ("mask", "param_mask")]:  # both
        with pytest.raises(SelectionError, match=f"no '{former}'") as caught:
            plan_lora(model, 1, **{word: None, former: None})
        assert isinstance(caught.value, TypeError)
    with pytest.raises(TypeError, match="wraper: did you mean 'wrapper'"):
        plan_lora(model, 1, wraper=ToyLinear)
