"""`apply_lora`: adapters where the plan says, of values that depend on key and path alone."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jno.lora import JnoLoraWarning, Net, SelectionError, WrapperError, apply_lora, plan_lora

from .toys import Block, ToyBlock, ToyLinear, ToyScale, adapters_in, same


def test_a_template_of_shapes_is_planned_and_adapted_like_the_model(model, getkey):
    template, key = eqx.filter_eval_shape(lambda: model), getkey()
    plan = plan_lora(model, 1, 3.0, wrapper=ToyLinear).wrapped
    assert plan_lora(template, 1, 3.0, wrapper=ToyLinear).wrapped == plan
    adapted = apply_lora(model, 1, 3.0, key=key, wrapper=ToyLinear)
    shapes = eqx.filter_eval_shape(apply_lora, model, 1, 3.0, key=key, wrapper=ToyLinear)
    assert jax.tree.structure(shapes) == jax.tree.structure(adapted)
    assert {(row.path, row.wrapper, row.rank, row.alpha) for row in plan} == {
        (path, type(a), a.rank, a.alpha) for path, a in adapters_in(adapted).items()
    }


def test_a_wrong_key_is_refused_with_an_example(model, unchecked):
    for key, came in [
        (0, "0"),
        (None, "None"),
        (jnp.zeros(2), r"an array float32\[2\]"),
        (jax.random.split(jax.random.key(0)), r"an array key<fry>\[2\]"),
        (np.zeros((3, 2), np.uint32), r"an array uint32\[3, 2\]"),
        (np.zeros(3, np.uint32), r"an array uint32\[3\]"),
    ]:
        message = rf"`key` must be one random key, such as jax.random.key\(0\), but is {came}\."
        with pytest.raises(SelectionError, match=message):
            apply_lora(model, 1, key=key, wrapper=ToyLinear)


def test_an_adapted_layer_is_never_wrapped_again_and_a_net_refuses(model, getkey):
    once = apply_lora(model, 1, key=getkey(), wrapper=ToyLinear, target="encoder")
    twice = apply_lora(once, 2, key=getkey(), wrapper=ToyScale)
    assert same(twice.encoder, once.encoder)
    assert isinstance(twice.head, ToyScale)
    with pytest.warns(JnoLoraWarning, match=r"(?s)carries an adapter.*Merge or unwrap") as caught:
        thrice = apply_lora(twice, 2, key=getkey(), wrapper=ToyScale, target="encoder")
    assert thrice is twice and len(caught) == 1
    net = Net(once)
    with pytest.raises(SelectionError, match=r"(?s)already adapted by ToyL.*net\.merge") as error:
        net.lora(2, wrapper=ToyScale, target="encoder")
    assert net.module is once
    for message in (str(caught[0].message), str(error.value)):
        assert "encoder/0" in message and "encoder/1" in message and "head" not in message
    net = Net([Block(2, key=getkey())]).lora(1, wrapper=ToyLinear, target="up")
    with pytest.raises(SelectionError, match=r"already.*\n.*0 "):
        net.lora(1, wrapper=ToyBlock)  # around an adapted layer


def test_the_summary_says_which_ranks_were_clamped_and_nothing_warns(model):
    net = Net(model).lora(8, wrapper=ToyLinear)  # warnings are errors here
    rows = {row.path: (row.rank, row.asked_rank) for row in net.summary()}
    assert rows["encoder/0"] == (3, 8) and rows["head"] == (2, 8)
    shown = str(net.summary())
    assert "2 of 8" in shown and "the layer allows no more than" in shown
    assert all(row.asked_rank is None for row in Net(model).lora(2, wrapper=ToyLinear).summary())
    net.unwrap().lora(2, wrapper=ToyLinear)
    assert "2 of" not in str(net.summary())


class Picky(ToyLinear):
    def __init__(self, base, rank, alpha, *, key):
        raise RuntimeError("why")


class PickySelection(ToyLinear):
    def __init__(self, base, rank, alpha, *, key):
        raise SelectionError("why")


class Uncounted(ToyLinear):
    @classmethod
    def stack_ndim(cls, leaf):
        raise RuntimeError("why")


@pytest.mark.parametrize(
    ("cls", "error", "message"),
    [
        (Picky, WrapperError, "Could not build the Picky around the Linear at 'head': Ru.*why"),
        (PickySelection, SelectionError, "PickySelection around the Linear at 'head': why"),
        (Uncounted, WrapperError, "Uncounted around the Linear at 'head': RuntimeError: why"),
    ],
)
def test_a_class_that_fails_is_named_with_its_layer_and_path(model, cls, error, message):
    before, net = jax.tree.map(lambda x: x, model), Net(model).freeze()
    module, trainable = net.module, net.trainable
    with pytest.raises(error, match=message) as caught:
        net.lora(1, wrapper=cls, target="head")
    assert caught.value.__cause__ is not None
    assert same(model, before) and net.module is module and net.trainable is trainable
