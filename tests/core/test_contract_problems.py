"""Each way to break the contract of an adapter class has a message of its own."""

import equinox as eqx
import jax
import pytest

from jno.lora import About, LoRAWrapper, MatrixAdapter, WrapperError, apply_lora
from jno.lora._contract._problems import check_contract, contract_problems

from .toys import ToyBlock, ToyConv, ToyLinear, ToyScale, ToyStacked, UserEmbedding


@pytest.mark.parametrize("cls", [ToyLinear, ToyScale, ToyConv, UserEmbedding, ToyBlock, ToyStacked])
def test_a_class_in_the_documented_form_has_no_problem(cls):
    assert contract_problems(cls) == ()
    check_contract(cls)


# A class body without the member that the test is about.
def without(*names):
    body = {
        "adapter_fields": ("delta",),
        "applies_to": classmethod(lambda cls, leaf: False),
        "__call__": lambda self, x: x,
        "merge": lambda self: self.base,
        "__init__": lambda self, base, rank, alpha, *, key: None,
        "rank": eqx.field(static=True),
        "alpha": eqx.field(static=True),
        "__annotations__": {"base": eqx.Module, "delta": jax.Array, "rank": int, "alpha": float},
    }
    for name in names:
        body.pop(name, None)
        body["__annotations__"].pop(name, None)
    return body


def define(body=None, **members):
    return type(LoRAWrapper)("Broken", (LoRAWrapper,), {**(body or without()), **members})


@pytest.mark.parametrize("name", ["adapter_fields", "base", "applies_to", "__call__", "merge"])
def test_a_required_member_that_is_missing_is_named(name):
    assert contract_problems(define(without(name))) == (f"`{name}` is not defined",)


@pytest.mark.parametrize("name", ["rank", "alpha"])
def test_rank_and_alpha_of_the_constructor_are_fields(name):
    (problem,) = contract_problems(define(without(name)))
    assert problem.startswith(f"`{name}` is not defined, but `__init__` takes it: keep it, as in ")
    assert f"`{name}: " in problem and "eqx.field(static=True)`" in problem


@pytest.mark.parametrize(
    ("left_out", "init"),
    [
        (("rank", "alpha"), lambda self, base, *, key: None),
        (("rank", "alpha"), lambda self, base, *, key, **options: None),
        (("alpha",), lambda self, base, rank, *, key: None),
        (("rank",), lambda self, base, *, alpha=1.0, key: None),
        ((), lambda self, base, r, a, *, key: None),
        ((), lambda self, *args, key: None),
    ],
)
def test_a_constructor_takes_what_it_has_a_use_for(left_out, init):
    assert contract_problems(define(without(*left_out), __init__=init)) == ()


@pytest.mark.parametrize("value", ["", 2106.09685, "a:b", "auto", "All-Linear"])
def test_a_variant_is_a_word(value):
    (problem,) = contract_problems(define(variant=value))
    assert problem.startswith("`variant` must be a word") and repr(value) in problem


@pytest.mark.parametrize("name", ["family", "paper", "formula", "cost", "bibtex"])
def test_the_facts_for_listings_are_texts_or_none(name):
    (problem,) = contract_problems(define(about=About(**{name: ""})))
    assert problem.startswith(f"`About({name}=...)` must be a text") and "''" in problem
    assert contract_problems(define(about=About(**{name: None}))) == ()


@pytest.mark.parametrize("member", ["rank_axes", "factor_sides"])
def test_the_axes_of_directions_and_the_factors_name_fields(member):
    (problem,) = contract_problems(define(**{member: {"detla": 0}}))
    assert problem.startswith(f"`{member}` names 'detla', which is not a field")


def test_several_missing_members_are_all_named():
    problems = contract_problems(define(without("merge", "base", "adapter_fields")))
    assert problems == tuple(f"`{n}` is not defined" for n in ("adapter_fields", "base", "merge"))


@pytest.mark.parametrize("value", ["delta", (), ["delta"], (1,)])
def test_adapter_fields_must_be_a_tuple_of_names(value):
    (problem,) = contract_problems(define(adapter_fields=value))
    assert "must be a non-empty tuple of field names" in problem
    assert repr(value) in problem and '("lora_A",)' in problem


def test_optional_fields_must_name_fields():
    (problem,) = contract_problems(define(optional_fields=("gain",)))
    assert problem.startswith("`optional_fields` names 'gain', which is not a field")


def test_adapter_fields_must_name_fields_and_the_message_lists_them():
    (problem,) = contract_problems(define(adapter_fields=("detla",)))
    assert problem == "`adapter_fields` names 'detla', which is not a field (fields: delta)"


def test_a_static_field_cannot_train():
    body = without()
    body["delta"] = eqx.field(static=True)
    (problem,) = contract_problems(define(body))
    assert "'delta', which is static" in problem


def test_the_base_cannot_train():
    (problem,) = contract_problems(define(adapter_fields=("base",)))
    assert "'base', which must stay frozen" in problem


def test_the_base_must_be_a_field():
    (problem,) = contract_problems(define(without("base"), base=property(lambda self: None)))
    assert problem.startswith("`base` must be a field")


@pytest.mark.parametrize(
    "init",
    [
        lambda self, base: None,
        lambda self, base, *, rank, alpha: None,
        lambda self, base, rank, alpha: None,
        lambda self, base, rank, alpha, extra, *, key: None,
        lambda self, base, *, rank, alpha, key: None,
    ],
)
def test_the_constructor_must_accept_base_rank_alpha_and_key(init):
    (problem,) = contract_problems(define(__init__=init))
    assert problem.startswith("`__init__` must accept `(self, base, rank, alpha, *, key)`, or ")


def test_the_constructor_may_accept_more():
    def init(self, base, rank, alpha, *, key, adapter_dtype=None):
        self.base = base

    assert contract_problems(define(__init__=init)) == ()


@pytest.mark.parametrize("name", ["applies_to", "stack_ndim", "from_state"])
def test_members_that_are_called_on_the_class_must_be_classmethods(name):
    (problem,) = contract_problems(define(**{name: lambda leaf: False}))
    assert problem == f"`{name}` must be a classmethod"


@pytest.mark.parametrize("thing", [eqx.nn.Linear, 3, "LoRALinear", None, [1], {"a": 1}])
def test_an_object_that_is_not_an_adapter_class_is_reported(thing):
    (problem,) = contract_problems(thing)
    assert problem == f"{thing!r} is not a subclass of jno.lora.LoRAWrapper"


def test_an_instance_is_said_to_be_no_class(getkey):
    instance = ToyLinear(eqx.nn.Linear(1, 1, key=getkey()), 1, 1.0, key=getkey())
    (problem,) = contract_problems(instance)
    assert "is not a subclass of jno.lora.LoRAWrapper" in problem


def test_the_error_names_the_class_and_lists_every_problem_and_where_to_look():
    def instance_method(self, leaf):
        return False

    cls = define(adapter_fields="delta", applies_to=instance_method)
    with pytest.raises(WrapperError) as caught:
        check_contract(cls)
    message = str(caught.value)
    assert message.startswith("Broken is not a usable adapter class:")
    assert "mind the comma" in message and "`applies_to` must be a classmethod" in message
    assert "jno.lora.LoRAWrapper" in message


def test_a_broken_class_is_refused_before_the_model_is_looked_at(model, getkey):
    with pytest.raises(WrapperError, match="`merge` is not defined"):
        apply_lora(model, 1, key=getkey(), wrapper=define(without("merge")))


# --- adapters that were written for 0.3, which derive from LoRAWrapper alone


class Former(ToyLinear):
    family, paper, formula, bibtex = "low rank", "2106.09685", "2 r in", "@misc{one}"

    @classmethod
    def matrix(cls, layer):
        return layer.weight

    @classmethod
    def low_rank_scale(cls, rank, alpha):
        return alpha / rank


def test_facts_that_are_attributes_are_collected():
    facts = About("low rank", "2106.09685", "2 r in", None, "@misc{one}")
    assert (contract_problems(Former), Former.about) == ((), facts)
    assert type("Child", (Former,), {"formula": "r in"}).about.formula == "r in"
    assert type("Child", (Former,), {"about": About(cost="much")}).about == About(cost="much")


def test_members_about_matrices_need_no_other_base_class():
    cls, layer = MatrixAdapter.of(Former), eqx.nn.Linear(3, 2, key=jax.random.key(0))
    assert cls.matrix(layer) is layer.weight and cls.low_rank_scale(2, 1.0) == 0.5
    assert cls.inputs_of(layer, layer.weight[0]).shape == (1, 3)
    assert (cls.needs, cls.rank_gate, cls.matrices(layer)) == ((), None, {})
    assert MatrixAdapter.of(Former) is cls and MatrixAdapter.of(cls) is cls
