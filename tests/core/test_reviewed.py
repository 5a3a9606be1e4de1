"""Corners in which something was once lost silently."""

import equinox as eqx
import jax
import pytest

from jno.lora import (
    JnoLoraWarning,
    Net,
    PluginError,
    Registry,
    SelectionError,
    apply_lora,
    plan_lora,
)

from .asking import wrapped
from .toys import ToyBlock, ToyLinear


def test_a_list_is_in_order_of_priority_for_containers_too(blocks):
    layers_first = wrapped(blocks, 1, wrapper=[ToyLinear, ToyBlock])
    assert set(layers_first.values()) == {ToyLinear}
    containers_first = wrapped(blocks, 1, wrapper=[ToyBlock, ToyLinear])
    assert set(containers_first.values()) == {ToyBlock}


def test_a_pending_mask_is_never_dropped(model):
    net = Net(model).lora(1, wrapper=ToyLinear)
    net.mask("head")
    for control in (net.merge, net.unwrap):
        with pytest.raises(SelectionError, match="A mask is pending"):
            control()
    net.freeze()
    net.merge()


@pytest.mark.parametrize("control", ["freeze", "unfreeze"])
def test_a_mask_that_selects_nothing_warns(model, control):
    net = Net(model)
    before = net.trainable
    with pytest.warns(JnoLoraWarning, match="selects nothing that could train"):
        getattr(net.mask("no such path"), control)()
    assert jax.tree.leaves(net.trainable) == jax.tree.leaves(before)


def test_a_mask_may_leave_out_leaves_that_are_not_arrays(getkey):
    model = eqx.nn.MLP(2, 2, 2, 1, key=getkey())
    mask = jax.tree.map(lambda _: True, eqx.filter(model, eqx.is_array))
    assert len(plan_lora(model, 1, wrapper=ToyLinear, mask=mask).wrapped) == 2


def test_a_qualified_name_is_never_picked_among_two():
    registry = Registry(discover=False)
    for module in ("one", "two"):
        registry.register(type(ToyLinear)("Twin", (ToyLinear,), {"__module__": module}))
    with pytest.raises(PluginError, match=r"one\.Twin(.|\n)*two\.Twin"):
        registry.resolve("(in-process):Twin")


def test_options_are_a_dict(model, unchecked):
    with pytest.raises(SelectionError, match="must be a dict of keyword arguments"):
        Net(model).lora(1, wrapper=ToyLinear, options=[1])


def test_a_subclass_of_weight_norm_is_refused_too(getkey):
    class OwnNorm(eqx.nn.WeightNorm):
        pass

    layer = OwnNorm(eqx.nn.Linear(3, 3, key=getkey()))
    with pytest.raises(SelectionError, match="rescale or bypass") as caught:
        apply_lora({"layer": layer}, 1, wrapper=ToyLinear, key=jax.random.key(0))
    assert "can adapt are" not in str(caught.value)


def test_damaged_metadata_does_not_stop_discovery(site):
    site.install_zoo()
    folder = site.root / "broken"
    (folder / "half_removed-1.0.dist-info").mkdir(parents=True)
    (folder / "half_removed-1.0.dist-info" / "entry_points.txt").write_text(
        "[jno.lora]\nmain = no_such_module_here\n"
    )
    site.monkeypatch.syspath_prepend(folder)
    with pytest.warns(JnoLoraWarning, match="left out"):
        records = Registry().records()
    assert {r.distribution: r.status for r in records} == {
        "jno-lora-zoo": "loaded",
        "half-removed": "failed",
    }
