"""Plans and calls select the same layers, as the documentation says."""

import re
from typing import Any

import jax
import pytest
from hypothesis import given, strategies as st

from jno.lora import Net, SelectionError, apply_lora, plan_lora

from .naive import Selection, arrays_of, leaves_of, rules_of, selection
from .random_calls import CALLS, lacks_an_option, registry
from .random_models import examples, masks_of, models
from .trees import adapters, owner, same

REGISTRY, INSTALLED = registry()
KEY = jax.random.key(0)


def chosen_by(mask, model):
    """The paths of the leaves that a mask selects."""
    if mask is None:
        return None
    paths = leaves_of("", model)
    if isinstance(mask, str):
        return {path for path in paths if re.search(mask, path)}
    return {path for path, is_chosen in zip(paths, jax.tree.leaves(mask), strict=True) if is_chosen}


@pytest.fixture(scope="module", autouse=True)
def no_advice():
    """Nobody reads the advice of a plan here, and it asks every installed adapter."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jno.lora._dispatch.advised", lambda plan, *_, **__: plan)
        yield


# Outside of the strategy below, which would make it anew at each draw.
MODELS = models(sure=["linear", "conv", "adapted", "attention", "embedding"])


@st.composite
def cases(draw):
    """A model, a call and a mask. Of most calls, only the specs that find something are left."""
    model = draw(MODELS)
    call, mask = draw(CALLS), draw(masks_of(model))
    if "specs" in call and draw(st.sampled_from([True, True, True, False])):
        # To leave out one that finds nothing changes nothing for the others.
        matching = expected_of(model, call, mask)[0].matching
        call = {**call, "specs": [call["specs"][i] for i in sorted(matching)] or call["specs"]}
    return model, call, mask


def expected_of(model, call, mask) -> tuple[Selection, bool]:
    """The layers that a call should select, and whether each of its rules finds one."""
    rules = rules_of(call, INSTALLED)
    found = selection(model, rules, chosen_by(mask, model))
    return found, found.matching == set(range(len(rules)))


def wrapped_by(plan) -> dict[str, Any]:
    return {row.path: (row.wrapper, row.rank, row.alpha, row.options) for row in plan.wrapped}


@examples(150)
@given(case=cases())
def test_a_plan_is_what_a_naive_reading_of_the_documentation_selects(case):
    model, call, mask = case
    expected, finds_all = expected_of(model, call, mask)
    arguments = {**call, "param_mask": mask, "registry": REGISTRY}
    if not finds_all:
        assert "selects no layer" in str(plan_lora(model, **arguments).problem)
        return
    assert wrapped_by(plan_lora(model, **arguments)) == expected.wrapped


@pytest.mark.filterwarnings("ignore::jno.lora.JnoLoraWarning")
@examples(50)
@given(case=cases())
def test_exactly_the_planned_layers_are_wrapped_by_a_net_too(case):
    model, call, mask = case
    arguments = {**call, "param_mask": mask, "registry": REGISTRY}
    of_net = {"wrapper" if name == "wrappers" else name: value for name, value in call.items()}
    before = arrays_of("", model)
    net = Net(model, key=KEY, registry=REGISTRY)
    net = net if mask is None else net.mask(mask)
    plan = plan_lora(model, **arguments)
    planned = wrapped_by(plan)
    error = plan.problem and re.escape(plan.problem)
    if any(lacks_an_option(cls, options) for cls, _, _, options in planned.values()):
        error = "has no option"
    if error is not None:
        with pytest.raises(SelectionError, match=error):
            apply_lora(model, key=KEY, **arguments)
        with pytest.raises(SelectionError):
            net.lora(**of_net)
        assert net.module is model
        return
    adapted = apply_lora(model, key=KEY, **arguments)
    former = adapters(model)
    found = {path: node for path, node in adapters(adapted).items() if path not in former}
    assert {p: planned[p][:3] for p in planned} == {
        p: (type(node), node.rank, node.alpha) for p, node in found.items()
    }
    for path, node in found.items():
        if "adapter_dtype" in planned[path][3]:
            fields = [getattr(node, name) for name in type(node).adapter_fields]
            dtype = planned[path][3]["adapter_dtype"]
            assert all(x.dtype == dtype for x in jax.tree.leaves(fields))
    # Everything else is the same object, and the model that was given is as it was.
    after = arrays_of("", adapted)
    for path, array in arrays_of("", model).items():
        assert array is before[path]
        around = owner(path, found)
        if around is None:
            assert after[path] is array
        else:
            inside = path[len(around) :].lstrip("/")
            assert after["/".join(filter(None, [around, "base", inside]))] is array
    if found or not expected_of(model, call, mask)[0].carrying:
        assert same(net.lora(**of_net).module, adapted)
    else:  # the one difference: to select nothing but what carries an adapter is an error of a net
        with pytest.raises(SelectionError, match="carries an adapter already"):
            net.lora(**of_net)
