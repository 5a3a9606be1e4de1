"""What is planned is what is wrapped, and both are what the documentation says."""

import re

import jax
import numpy as np
import pytest
from hypothesis import given, strategies as st

import jno_lora_zoo as zoo
from jno.lora import Net, SelectionError, apply_lora, plan_lora

from .naive import arrays_of, leaves_of, nodes_below, selection
from .random_models import (
    TARGETS,
    EmbeddingAdapter,
    LoRAWrapper,
    NodeAdapter,
    examples,
    layer,
    masks_of,
    models,
)

WRAPPERS = [
    zoo.LoRALinear,
    zoo.DoRALinear,
    zoo.LoRAConv,
    zoo.LoRAInNorm,
    NodeAdapter,
    EmbeddingAdapter,
]
SPEC = st.fixed_dictionaries(
    {
        "target": st.sampled_from(TARGETS),
        "wrapper": st.lists(st.sampled_from(WRAPPERS), min_size=1, max_size=3, unique=True),
        "rank": st.integers(1, 3),
    }
)
SPECS = st.lists(SPEC, min_size=1, max_size=4)


def chosen_by(mask, model):
    """The paths of the leaves that a mask selects."""
    if mask is None:
        return None
    paths = leaves_of("", model)
    if isinstance(mask, str):
        return {path for path in paths if re.search(mask, path)}
    return {path for path, is_chosen in zip(paths, jax.tree.leaves(mask), strict=True) if is_chosen}


@examples(300)
@given(model=models(), specs=SPECS, data=st.data())
def test_a_plan_is_what_a_naive_reading_of_the_documentation_selects(model, specs, data):
    mask = data.draw(masks_of(model))
    expected = selection(model, specs, chosen_by(mask, model))
    if expected.matching != set(range(len(specs))):
        with pytest.raises(SelectionError, match="selects no layer"):
            plan_lora(model, specs=specs, param_mask=mask)
        return
    plan = plan_lora(model, specs=specs, param_mask=mask)
    assert {row.path: (row.wrapper, row.rank) for row in plan.wrapped} == expected.wrapped


def adapters_in(model):
    return {
        path: node
        for path, node in [("", model), *nodes_below("", model)]
        if isinstance(node, LoRAWrapper)
    }


@pytest.mark.filterwarnings("ignore::jno.lora.JnoLoraWarning")
@examples(100)
@given(model=models(), specs=SPECS, data=st.data())
def test_what_is_planned_is_wrapped_and_nothing_else(model, specs, data):
    mask = data.draw(masks_of(model))
    specs = [{**spec, "rank": 2} for spec in specs]
    arguments = {"specs": specs, "alpha": 3.0, "param_mask": mask}
    before = arrays_of("", model)
    try:
        plan = plan_lora(model, **arguments)
    except SelectionError:
        with pytest.raises(SelectionError):
            apply_lora(model, key=jax.random.key(0), **arguments)
        return
    adapted = apply_lora(model, key=jax.random.key(0), **arguments)
    planned = {row.path: (row.wrapper, row.rank, row.alpha) for row in plan.wrapped}
    former = adapters_in(model)
    found = {path: node for path, node in adapters_in(adapted).items() if path not in former}
    assert planned == {p: (type(node), node.rank, node.alpha) for p, node in found.items()}
    # Everything else is the same object, and the model that was given is as it was.
    after = arrays_of("", adapted)
    for path, array in arrays_of("", model).items():
        assert array is before[path]
        owner = next((p for p in found if path == p or path.startswith(f"{p}/" if p else "")), None)
        if owner is None:
            assert after[path] is array
        elif type(found[owner]) is not zoo.LoRAInNorm:
            inside = path[len(owner) :].lstrip("/")
            assert after["/".join(filter(None, [owner, "base", inside]))] is array


@pytest.mark.filterwarnings("ignore::jno.lora.JnoLoraWarning")
@examples(40)
@given(model=models(), specs=SPECS, data=st.data())
def test_a_net_plans_and_wraps_the_same(model, specs, data):
    mask = data.draw(masks_of(model))
    specs = [{**spec, "rank": 2} for spec in specs]
    net = Net(model) if mask is None else Net(model).mask(mask)
    try:
        plan = plan_lora(model, alpha=3.0, specs=specs, param_mask=mask)
        net.lora(2, 3.0, specs=specs)
    except SelectionError:
        assert net.module is model
        return
    former = adapters_in(model)
    found = [path for path in adapters_in(net.module) if path not in former]
    assert found == [row.path for row in plan.wrapped]


def test_the_random_layers_are_what_they_are_called():
    rng = np.random.default_rng(0)
    assert zoo.LoRALinear.applies_to(layer("duck", rng))
    assert zoo.LoRALinear.stack_ndim(layer("stack", rng)) == 1
    assert isinstance(layer("adapted", rng), zoo.LoRALinear)
    assert zoo.LoRAInNorm.applies_to(layer("weight norm", rng))
