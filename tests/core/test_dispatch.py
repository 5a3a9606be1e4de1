"""`apply_lora`: adapters where the plan says, of values that depend on key and path alone."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jno.lora import (
    JnoLoraWarning,
    Net,
    SelectionError,
    WrapperError,
    apply_lora,
    merge_lora,
    plan_lora,
)

from .toys import (
    MODEL_LINEARS,
    Block,
    Model,
    ToyBlock,
    ToyConv,
    ToyLinear,
    ToyScale,
    UserEmbedding,
    adapters_in,
    same,
)


def linear(key, inputs=3, outputs=3):
    return eqx.nn.Linear(inputs, outputs, key=key)


def mixed(key):
    return {
        "layers": [linear(key), (linear(key), None)],
        "block": Block(2, key=key),
        "conv": eqx.nn.Sequential([eqx.nn.Conv1d(1, 2, 3, key=key), eqx.nn.Lambda(jax.nn.relu)]),
        "mlp": eqx.nn.MLP(2, 1, 3, 1, key=key),
        "constants": [1, 2.5, "text", jnp.arange(3), jax.random.key(0)],
    }


EVERYTHING = (ToyLinear, ToyConv, UserEmbedding, ToyBlock)


@pytest.fixture(params=[Model, mixed], ids=["a module", "dict, list, tuple, None"])
def any_model(request, getkey):
    return request.param(getkey())


# --- what is wrapped


def test_the_layers_of_the_plan_are_wrapped_and_nothing_else_changes(any_model, getkey):
    before = jax.tree.map(lambda x: x, any_model)
    plan = plan_lora(any_model, 1, 3.0, wrapper=EVERYTHING)
    adapted = apply_lora(any_model, 1, 3.0, key=getkey(), wrapper=EVERYTHING)
    assert {(r.path, r.wrapper, r.rank, r.alpha) for r in plan.wrapped} == {
        (path, type(a), a.rank, a.alpha) for path, a in adapters_in(adapted).items()
    }
    bases = jax.tree.map(
        lambda n: n.base if isinstance(n, EVERYTHING) else n,
        adapted,
        is_leaf=lambda n: isinstance(n, EVERYTHING),
    )
    assert same(any_model, before) and same(bases, any_model)


def test_specs_with_a_rank_need_no_rank_of_the_call(model, getkey):
    specs = iter([{"target": "head", "rank": 2, "wrapper": ToyLinear}])
    assert set(adapters_in(apply_lora(model, key=getkey(), specs=specs))) == {"head"}


def test_the_same_layer_in_two_places_is_adapted_in_each_on_its_own(getkey):
    layer = linear(getkey())
    adapted = apply_lora([layer, layer], 1, key=getkey(), wrapper=ToyLinear)
    assert isinstance(adapted[0], ToyLinear) and isinstance(adapted[1], ToyLinear)
    assert not jnp.array_equal(adapted[0].lora_A, adapted[1].lora_A)
    assert isinstance(apply_lora(layer, 2, key=getkey(), wrapper=ToyLinear), ToyLinear)


def test_an_adapted_model_computes_what_it_did_before(model, getkey):
    adapted = apply_lora(model, 2, key=getkey(), wrapper=[UserEmbedding, ToyLinear])
    assert jnp.allclose(adapted(1), model(1), rtol=1e-6)
    assert jnp.allclose(merge_lora(adapted)(1), model(1), rtol=1e-6)


# --- keys


@pytest.mark.parametrize(
    ("key", "came"),
    [
        (0, "0"),
        (None, "None"),
        (jnp.zeros(2), r"an array float32\[2\]"),
        (jax.random.split(jax.random.key(0)), r"an array key<fry>\[2\]"),
        (np.zeros((3, 2), np.uint32), r"an array uint32\[3, 2\]"),
        (np.zeros(3, np.uint32), r"an array uint32\[3\]"),
    ],
)
def test_a_wrong_key_is_refused_with_an_example(model, unchecked, key, came):
    message = rf"`key` must be one random key, such as jax.random.key\(0\), but is {came}\."
    with pytest.raises(SelectionError, match=message):
        apply_lora(model, 1, key=key, wrapper=ToyLinear)


def test_adapting_one_layer_more_never_changes_another(model):
    key = jax.random.key(1)
    alone = apply_lora(model, 1, key=key, wrapper=ToyLinear, target="encoder/1")
    together = apply_lora(model, 1, key=key, wrapper=ToyLinear)
    assert same(alone.encoder[1], together.encoder[1])
    assert same(apply_lora(alone, 1, key=key, wrapper=ToyLinear), together)
    one, two = model.encoder
    small = apply_lora({"b": one}, 1, key=key, wrapper=ToyLinear)
    assert same(small["b"], apply_lora({"a": two, "b": one}, 1, key=key, wrapper=ToyLinear)["b"])
    other = apply_lora(model, 1, key=jax.random.key(2), wrapper=ToyLinear)
    assert not jnp.array_equal(together.encoder[0].lora_A, together.encoder[1].lora_A)
    assert not jnp.array_equal(together.encoder[0].lora_A, other.encoder[0].lora_A)


def test_typed_and_raw_keys_of_one_seed_give_the_same_adapters(model):
    typed = apply_lora(model, 1, key=jax.random.key(7), wrapper=ToyLinear)
    raw = apply_lora(model, 1, key=jax.random.PRNGKey(7), wrapper=ToyLinear)
    assert same(typed, raw)
    assert set(adapters_in(raw)) == set(MODEL_LINEARS)


# --- what transforms may do with it


def test_it_can_be_traced(model, getkey):
    key = getkey()
    concrete = apply_lora(model, 1, key=key, wrapper=ToyLinear)
    shapes = eqx.filter_eval_shape(apply_lora, model, 1, key=key, wrapper=ToyLinear)
    assert jax.tree.structure(shapes) == jax.tree.structure(concrete)


def test_a_template_of_shapes_is_planned_like_the_model(model):
    template = eqx.filter_eval_shape(lambda: model)
    assert plan_lora(template, 1, wrapper=ToyLinear).wrapped == (
        plan_lora(model, 1, wrapper=ToyLinear).wrapped
    )


# --- already adapted


def test_an_adapted_layer_is_never_wrapped_again(model, getkey):
    once = apply_lora(model, 1, key=getkey(), wrapper=ToyLinear, target="encoder")
    twice = apply_lora(once, 2, key=getkey(), wrapper=ToyScale)
    assert same(twice.encoder, once.encoder)
    assert isinstance(twice.head, ToyScale)
    with pytest.warns(JnoLoraWarning, match=r"(?s)carries an adapter.*Merge or unwrap") as caught:
        thrice = apply_lora(twice, 2, key=getkey(), wrapper=ToyScale, target="encoder")
    assert thrice is twice and len(caught) == 1
    message = str(caught[0].message)
    assert "encoder/0" in message and "encoder/1" in message and "head" not in message


def test_if_all_are_adapted_net_refuses_and_names_them(model, getkey):
    net = Net(model).lora(1, wrapper=ToyLinear)
    before = net.module
    with pytest.raises(SelectionError, match=r"(?s)encoder/0 \(already adapted by ToyL") as caught:
        net.lora(2, wrapper=ToyScale, target="encoder")
    message = str(caught.value)
    assert "head" not in message and "net.merge()" in message and "net.unwrap()" in message
    assert net.module is before
    net = Net([Block(2, key=getkey())]).lora(1, wrapper=ToyLinear, target="up")
    with pytest.raises(SelectionError, match=r"already.*\n.*0 "):
        net.lora(1, wrapper=ToyBlock)  # around an adapted layer
    assert set(adapters_in(net.module)) == {"0/up"}


# --- clamping


def test_the_summary_says_which_ranks_were_clamped_and_nothing_warns(model, getkey):
    net = Net(model).lora(8, wrapper=ToyLinear)  # warnings are errors here
    rows = {row.path: (row.rank, row.asked_rank) for row in net.summary()}
    assert rows["encoder/0"] == (3, 8) and rows["head"] == (2, 8)
    shown = str(net.summary())
    assert "2 of 8" in shown and "the layer allows no more than" in shown
    assert all(row.asked_rank is None for row in Net(model).lora(2, wrapper=ToyLinear).summary())
    net.unwrap().lora(2, wrapper=ToyLinear)
    assert "2 of" not in str(net.summary())
    assert apply_lora(model, 8, key=getkey(), wrapper=ToyLinear).head.rank == 2


# --- failing constructors


class Picky(ToyLinear):
    error = RuntimeError

    def __init__(self, base, rank, alpha, *, key):
        if base.out_features == 2:
            raise self.error(f"cannot wrap {base.out_features} outputs")
        ToyLinear.__init__(self, base, rank, alpha, key=key)


class PickySelection(Picky):
    error = SelectionError


class Uncounted(ToyLinear):
    @classmethod
    def stack_ndim(cls, leaf):
        raise RuntimeError("cannot wrap 2 outputs")


@pytest.mark.parametrize("cls", [Picky, PickySelection, Uncounted])
def test_a_constructor_that_fails_is_named_with_its_layer_and_path(model, cls):
    before, net = jax.tree.map(lambda x: x, model), Net(model).freeze()
    module, trainable = net.module, net.trainable
    error = getattr(cls, "error", RuntimeError)  # an error of ours keeps its class
    with pytest.raises(SelectionError if error is SelectionError else WrapperError) as caught:
        net.lora(1, wrapper=cls, target="head")
    message = str(caught.value)
    assert message.startswith(f"Could not build the {cls.__name__} around the Linear at 'head': ")
    assert "cannot wrap 2 outputs" in message
    assert isinstance(caught.value.__cause__, error)
    assert same(model, before) and net.module is module and net.trainable is trainable


def test_an_applies_to_that_raises_is_named_with_the_node_and_path(model, getkey):
    class Greedy(ToyLinear):
        @classmethod
        def applies_to(cls, leaf):
            return leaf.in_features > 2

    with pytest.raises(WrapperError) as caught:
        apply_lora(model, 1, key=getkey(), wrapper=Greedy)
    message = str(caught.value)
    assert "Greedy.applies_to raised AttributeError on the Model at '<root>'" in message
    assert "must answer False" in message
