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


MODELS = {
    "Model": Model,
    "one layer": linear,
    "dict, list, tuple, None": mixed,
    "list of one": lambda key: [linear(key)],
    "MLP": lambda key: eqx.nn.MLP(2, 1, 3, 2, key=key),
}
EVERYTHING = [ToyLinear, ToyConv, UserEmbedding, ToyBlock]


@pytest.fixture(params=MODELS.values(), ids=MODELS.keys())
def any_model(request, getkey):
    return request.param(getkey())


# --- what is wrapped


def test_the_wrapped_layers_are_those_of_the_plan(any_model, getkey):
    plan = plan_lora(any_model, 1, 3.0, wrapper=EVERYTHING)
    adapters = adapters_in(apply_lora(any_model, 1, 3.0, key=getkey(), wrapper=EVERYTHING))
    assert adapters
    assert {(r.path, r.wrapper, r.rank, r.alpha) for r in plan.wrapped} == {
        (path, type(a), a.rank, a.alpha) for path, a in adapters.items()
    }


def test_only_the_wrapped_layers_change_and_the_model_is_not_touched(any_model, getkey):
    before = jax.tree.map(lambda x: x, any_model)
    adapted = apply_lora(any_model, 1, key=getkey(), wrapper=EVERYTHING)
    assert same(any_model, before)
    bases = jax.tree.map(
        lambda n: n.base if isinstance(n, EVERYTHING_TYPES) else n,
        adapted,
        is_leaf=lambda n: isinstance(n, EVERYTHING_TYPES),
    )
    assert same(bases, any_model)


EVERYTHING_TYPES = tuple(EVERYTHING)


@pytest.mark.parametrize("rank", [{}, {"rank": None}, {"rank": 0}])
def test_the_rank_of_a_call_is_not_optional(model, getkey, rank):
    for specs in (None, [{"target": "head"}]):
        with pytest.raises(SelectionError, match="must be an integer of at least 1, but is"):
            apply_lora(model, key=getkey(), wrapper=ToyLinear, specs=specs, **rank)


def test_specs_with_a_rank_need_no_rank_of_the_call(model, getkey):
    specs = [{"target": "head", "rank": 2, "wrapper": ToyLinear}]
    assert set(adapters_in(apply_lora(model, key=getkey(), specs=specs))) == {"head"}


def test_specs_may_be_an_iterator(model, getkey):
    specs = iter([{"target": "head", "rank": 2, "wrapper": ToyLinear}])
    assert set(adapters_in(apply_lora(model, key=getkey(), specs=specs))) == {"head"}


def test_a_model_that_is_one_layer_is_wrapped_at_the_root(getkey):
    layer = linear(getkey())
    adapted = apply_lora(layer, 2, key=getkey(), wrapper=ToyLinear)
    assert isinstance(adapted, ToyLinear)
    assert [row.path for row in plan_lora(layer, 2, wrapper=ToyLinear)] == [""]
    assert "<root>" in str(plan_lora(layer, 2, wrapper=ToyLinear))


def test_the_same_layer_in_two_places_is_adapted_in_each_on_its_own(getkey):
    layer = linear(getkey())
    adapted = apply_lora([layer, layer], 1, key=getkey(), wrapper=ToyLinear)
    assert isinstance(adapted[0], ToyLinear) and isinstance(adapted[1], ToyLinear)
    assert not jnp.array_equal(adapted[0].lora_A, adapted[1].lora_A)


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


def test_adapting_one_layer_more_never_changes_another(model, getkey):
    key = getkey()
    alone = apply_lora(model, 1, key=key, wrapper=ToyLinear, target="encoder/1")
    all_of_them = apply_lora(model, 1, key=key, wrapper=ToyLinear)
    later = apply_lora(alone, 1, key=key, wrapper=ToyLinear)
    assert same(alone.encoder[1], all_of_them.encoder[1])
    assert same(later, all_of_them)


def test_a_layer_added_to_the_model_changes_no_other(getkey):
    key, one, two = getkey(), linear(getkey()), linear(getkey())
    small = apply_lora({"b": one}, 1, key=key, wrapper=ToyLinear)
    large = apply_lora({"a": two, "b": one}, 1, key=key, wrapper=ToyLinear)
    assert same(small["b"], large["b"])


def test_layers_and_keys_differ(model):
    one = apply_lora(model, 1, key=jax.random.key(1), wrapper=ToyLinear)
    two = apply_lora(model, 1, key=jax.random.key(2), wrapper=ToyLinear)
    assert not jnp.array_equal(one.encoder[0].lora_A, one.encoder[1].lora_A)
    assert not jnp.array_equal(one.encoder[0].lora_A, two.encoder[0].lora_A)


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


def test_if_all_are_adapted_the_functional_form_warns_and_returns_the_model(model, getkey):
    once = apply_lora(model, 1, key=getkey(), wrapper=ToyLinear)
    with pytest.warns(JnoLoraWarning) as caught:
        twice = apply_lora(once, 2, key=getkey(), wrapper=ToyScale, target="encoder")
    assert twice is once
    message = str(caught[0].message)
    assert len(caught) == 1
    assert "carries an adapter already" in message and "Merge or unwrap first" in message
    assert "encoder/0" in message and "encoder/1" in message and "head" not in message


def test_if_all_are_adapted_net_refuses_and_names_them(model):
    net = Net(model).lora(1, wrapper=ToyLinear)
    before = net.module
    with pytest.raises(SelectionError) as caught:
        net.lora(2, wrapper=ToyScale, target="encoder")
    message = str(caught.value)
    assert "encoder/0 (already adapted by ToyLinear)" in message and "head" not in message
    assert "net.merge()" in message and "net.unwrap()" in message
    assert net.module is before


def test_a_container_whose_layers_are_adapted_is_not_wrapped_around_them(getkey):
    net = Net([Block(2, key=getkey())]).lora(1, wrapper=ToyLinear, target="up")
    with pytest.raises(SelectionError, match=r"already.*\n.*0 "):
        net.lora(1, wrapper=ToyBlock)
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


def test_a_rank_that_fits_does_not_warn(model, getkey):
    adapted = apply_lora(model, 2, key=getkey(), wrapper=ToyLinear)  # warnings are errors here
    assert [adapter.rank for adapter in adapters_in(adapted).values()] == [2, 2, 2]


# --- failing constructors


class Picky(ToyLinear):
    def __init__(self, base, rank, alpha, *, key):
        if base.out_features == 2:
            raise self.error(f"cannot wrap {base.out_features} outputs")
        ToyLinear.__init__(self, base, rank, alpha, key=key)

    error = RuntimeError


class PickySelection(Picky):
    error = SelectionError


class PickyWrapper(Picky):
    error = WrapperError


def test_a_constructor_that_fails_is_named_with_its_layer_and_path(model, getkey):
    before = jax.tree.map(lambda x: x, model)
    with pytest.raises(WrapperError) as caught:
        apply_lora(model, 1, key=getkey(), wrapper=Picky)
    message = str(caught.value)
    assert message.startswith("Could not build the Picky around the Linear at 'head': ")
    assert "RuntimeError: cannot wrap 2 outputs" in message
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert same(model, before)


@pytest.mark.parametrize("cls", [PickySelection, PickyWrapper])
def test_an_error_of_ours_in_a_constructor_keeps_its_class_and_gets_the_path(model, getkey, cls):
    with pytest.raises(cls.error, match=r"(?s)'head'.*cannot wrap 2 outputs"):
        apply_lora(model, 1, key=getkey(), wrapper=cls)


class Uncounted(ToyLinear):
    @classmethod
    def stack_ndim(cls, leaf):
        raise RuntimeError("no axes")


def test_a_stack_ndim_that_fails_is_named_with_its_layer_and_path(model, getkey):
    with pytest.raises(WrapperError, match=r"(?s)Uncounted .*Linear at 'head'.*no axes"):
        apply_lora(model, 1, key=getkey(), wrapper=Uncounted, target="head")


def test_after_a_failing_constructor_a_net_is_as_it_was(model):
    net = Net(model).freeze()
    module, trainable = net.module, net.trainable
    with pytest.raises(WrapperError):
        net.lora(1, wrapper=Picky)
    assert net.module is module and net.trainable is trainable


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


def test_an_adapted_model_computes_what_it_did_before(model, getkey):
    adapted = apply_lora(model, 2, key=getkey(), wrapper=[UserEmbedding, ToyLinear])
    assert jnp.allclose(adapted(1), model(1), rtol=1e-6)
    assert jnp.allclose(merge_lora(adapted)(1), model(1), rtol=1e-6)
