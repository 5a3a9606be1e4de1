"""Targets beside regexes: lists of names, and the linear layers in repeated blocks."""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import pytest

from jno.lora import SelectionError, Spec, apply_lora, plan_lora

from .toys import ToyLinear, ToyStacked


def linear(*sizes):
    return eqx.nn.Linear(*sizes, key=jr.key(0))


class Experts(eqx.Module):
    gate: eqx.nn.Linear
    experts: list

    def __init__(self):
        self.gate, self.experts = linear(4, 2), [linear(4, 4), linear(4, 4)]


class Attention(eqx.Module):
    q_proj: eqx.nn.Linear
    v_proj: eqx.nn.Linear
    gate: eqx.nn.Linear

    def __init__(self):
        self.q_proj, self.v_proj, self.gate = linear(4, 4), linear(4, 4), linear(4, 4)


class Block(eqx.Module):
    attention: Attention
    mixture: Experts

    def __init__(self, key=None):
        self.attention, self.mixture = Attention(), Experts()


class LanguageModel(eqx.Module):
    table: eqx.nn.Embedding
    blocks: list
    lm_head: eqx.nn.Linear

    def __init__(self):
        self.table = eqx.nn.Embedding(9, 4, key=jr.key(0))
        self.blocks, self.lm_head = [Block(), Block()], linear(4, 9)


@pytest.fixture(scope="module")
def model():
    return LanguageModel()


def wrapped(model, **kwargs):
    return [row.path for row in plan_lora(model, 2, wrapper=ToyLinear, **kwargs).wrapped]


IN_A_BLOCK = (
    *("attention/q_proj", "attention/v_proj", "attention/gate"),
    *("mixture/experts/0", "mixture/experts/1"),
)


def test_all_linear_leaves_out_the_head_and_routers(model):
    expected = [f"blocks/{n}/{path}" for n in (0, 1) for path in IN_A_BLOCK]
    assert wrapped(model, target="all-linear") == expected
    assert wrapped(model, specs=[Spec(target="all-linear")]) == expected


def test_all_linear_finds_the_layers_of_a_stack():
    stack = eqx.filter_vmap(lambda key: eqx.nn.MLP(2, 2, 4, 1, key=key))(jr.split(jr.key(0), 3))
    model = {"blocks": stack, "head": linear(2, 2)}
    row = plan_lora(model, 2, target="all-linear", wrapper=ToyStacked)
    assert [row.path for row in row.wrapped] == ["blocks/layers/0", "blocks/layers/1"]


def test_all_linear_of_an_adapted_model_finds_the_same_layers(model):
    adapted = apply_lora(model, 2, key=jr.key(0), target=["q_proj", "lm_head"], wrapper=ToyLinear)
    rows = plan_lora(adapted, 2, target="all-linear", wrapper=ToyLinear)
    assert [row.path for row in rows.having("already adapted") if row.spec is not None] == [
        "blocks/0/attention/q_proj",
        "blocks/1/attention/q_proj",
    ]


def test_a_model_without_blocks_has_no_all_linear():
    mlp = eqx.nn.MLP(2, 2, 4, 2, key=jr.key(0))
    plan = plan_lora(mlp, 2, target="all-linear", wrapper=ToyLinear)
    assert not plan.wrapped
    assert "repeated blocks" in str(plan)
    with pytest.raises(SelectionError, match=r"(?s)'all-linear'.*repeated blocks.*layers/0"):
        apply_lora(mlp, 2, key=jr.key(0), target="all-linear", wrapper=ToyLinear)


def test_one_module_in_a_list_is_not_a_repeated_block():
    model = {"blocks": [Block()], "rest": linear(4, 4)}
    plan = plan_lora(model, 2, target="all-linear", wrapper=ToyLinear)
    # The experts in it are repeated, without being blocks of the model.
    assert {row.path.rpartition("/")[0] for row in plan.wrapped} <= {"blocks/0/mixture/experts"}


def test_names_are_the_ends_of_paths(model):
    found = wrapped(model, target=["q_proj", "experts/1"])
    assert found == [
        f"blocks/{n}/{path}" for n in (0, 1) for path in ("attention/q_proj", "mixture/experts/1")
    ]
    assert wrapped(model, target=("proj",)) == []


def test_a_name_without_a_layer_is_an_error(model):
    with pytest.raises(SelectionError, match=r"'q_porj'.*end in:\n  - q_proj\n") as error:
        apply_lora(model, 2, key=jr.key(0), target=["q_proj", "q_porj"], wrapper=ToyLinear)
    assert "can adapt are:\n  - blocks/0/attention/q_proj" in str(error.value)


@pytest.mark.parametrize("target", ["all_linear", "All-Linear", "alllinear"])
def test_all_linear_spelled_otherwise_is_suggested(model, target):
    with pytest.raises(SelectionError, match="did you mean 'all-linear'"):
        plan_lora(model, 2, target=target, wrapper=ToyLinear)


def test_a_router_may_be_a_module():
    class Router(eqx.Module):
        proj: eqx.nn.Linear

    class Routed(eqx.Module):
        router: Router
        up: eqx.nn.Linear

    blocks = [Routed(Router(linear(4, 2)), linear(4, 4)) for _ in range(2)]
    assert wrapped({"blocks": blocks}, target="all-linear") == ["blocks/0/up", "blocks/1/up"]


def test_names_are_taken_literally():
    dotted = {"a.b": linear(2, 2), "axb": linear(2, 2)}
    assert wrapped(dotted, target=["a.b"]) == ["a.b"]


@pytest.mark.parametrize("target", [[], [3], {"q_proj"}, 3])
def test_other_targets_are_refused(model, target, unchecked):
    with pytest.raises(SelectionError, match="must be a regex"):
        plan_lora(model, 2, target=target, wrapper=ToyLinear)


def test_a_plan_names_heads_and_routers(model):
    rows = {row.path: row for row in plan_lora(model, 2, wrapper=ToyLinear)}
    assert rows["lm_head"].role == "output head"
    assert rows["blocks/0/mixture/gate"].role == "router"
    assert rows["blocks/0/attention/gate"].role is None
    assert rows["lm_head"].explanation == "wrapped by ToyLinear (output head)"


def test_integer_weights_are_told(model):
    def weight(model):
        return model.blocks[0].attention.q_proj.weight

    class OfFloats(ToyLinear):
        @classmethod
        def applies_to(cls, leaf):
            return super().applies_to(leaf) and eqx.is_inexact_array(leaf.weight)

    quantized = eqx.tree_at(weight, model, jnp.zeros((4, 4), jnp.int8))
    plan = plan_lora(quantized, 2, target="0/attention/q_proj", wrapper=OfFloats)
    (row,) = [row for row in plan if row.path == "blocks/0/attention/q_proj"]
    assert row.reason == "its weight is int8[4, 4], and adapters need floating weights"
    assert plan.problem is not None
    assert "q_proj: Linear, no wrapper applies: its weight is int8" in plan.problem


def test_a_plan_that_selects_nothing_shows_its_rows_and_the_error(model):
    plan = plan_lora(model, 2, target="nothing", wrapper=ToyLinear)
    assert len(plan) == 14
    assert "target 'nothing'" in str(plan)
    assert "nearest paths" in str(plan)
