"""Plans and calls select the same layers, as the documentation says."""

import re
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, strategies as st

from jno.lora import JnoLoraError, Net, SelectionError, apply_lora, plan_lora, save_adapters

from .naive import Selection, arrays_of, leaves_of, rules_of, selection
from .random_calls import CALLS, choose, lacks_an_option, registry
from .random_models import examples, layer, masks_of, models
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
    found = selection(model, rules, chosen_by(mask, model), choose)
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
@examples(60)
@given(case=cases())
def test_exactly_the_planned_layers_are_wrapped(case):
    model, call, mask = case
    arguments = {**call, "param_mask": mask, "registry": REGISTRY}
    before = arrays_of("", model)
    plan = plan_lora(model, **arguments)
    if plan.problem is not None:
        with pytest.raises(SelectionError, match=re.escape(plan.problem)):
            apply_lora(model, key=KEY, **arguments)
        return
    planned = wrapped_by(plan)
    if any(lacks_an_option(cls, options) for cls, _, _, options in planned.values()):
        with pytest.raises(SelectionError, match="has no option"):
            apply_lora(model, key=KEY, **arguments)
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
            assert all(
                x.dtype == planned[path][3]["adapter_dtype"] for x in jax.tree.leaves(fields)
            )
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


def outcome(act) -> Any:
    """The result of a call, or the kind of error that it ends with."""
    try:
        return act()
    except JnoLoraError as err:
        return type(err)


@pytest.mark.filterwarnings("ignore::jno.lora.JnoLoraWarning")
@examples(40)
@given(case=cases())
def test_a_net_plans_and_wraps_what_the_functions_do(case):
    model, call, mask = case

    def net():
        handle = Net(model, key=KEY, registry=REGISTRY)
        return handle if mask is None else handle.mask(mask)

    arguments = {**call, "param_mask": mask, "registry": REGISTRY}
    of_net = {"wrapper" if name == "wrappers" else name: value for name, value in call.items()}
    planned = outcome(lambda: plan_lora(model, **arguments))
    again = outcome(lambda: net().plan(**of_net))
    assert again is planned or wrapped_by(again) == wrapped_by(planned)
    handle = net()
    wrapped = outcome(lambda: handle.lora(**of_net))
    applied = outcome(lambda: apply_lora(model, key=KEY, **arguments))
    if wrapped is handle:
        assert same(handle.module, applied)
        return
    assert handle.module is model
    if isinstance(applied, type):
        assert wrapped is applied
    else:
        # The one difference: to select nothing but what carries an adapter is an error of a `Net`.
        assert (applied is model, wrapped) == (True, SelectionError)
        assert expected_of(model, call, mask)[0].carrying


def test_two_layers_whose_paths_read_alike_cannot_be_saved(tmp_path):
    rng = np.random.default_rng(0)
    model = {"a/b": layer("linear", rng), "a": {"b": layer("linear", rng)}}
    adapted = apply_lora(model, 2, key=KEY)
    assert [row.path for row in plan_lora(model, 2).wrapped] == ["a/b", "a/b"]
    with pytest.raises(SelectionError, match="a dict key in it holds a slash"):
        save_adapters(adapted, tmp_path / "adapters.safetensors")
