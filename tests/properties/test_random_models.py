"""The random models, calls and adapters have all that they are said to have."""

import collections
import functools
from typing import Any

import equinox as eqx
import jax
import jax.tree_util as jtu
import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings

import jno_lora_zoo as zoo
from jno.lora import LoRAWrapper, plan_lora

from .naive import is_array, nodes_below
from .odd_nodes import Node, Pair, Pile, Record
from .random_calls import FORMS, METHODS, form_of
from .random_models import KEYS, LAYERS, layer
from .test_identity import CASES
from .test_selection import INSTALLED, REGISTRY, cases, expected_of, wrapped_by


@functools.cache
def drawn(strategy: Any) -> list[Any]:
    """200 draws."""
    draws: list[Any] = []
    # Later draws resemble earlier ones, so that few from each of several seeds are the better
    # sample. Nothing is shrunk.
    sampled = settings(
        max_examples=20,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow],
    )
    for number in range(10):
        seed(number)(sampled(given(strategy)(lambda draw: draws.append(draw))))()
    return draws


def counted(strategy: Any, what_of: Any) -> collections.Counter[Any]:
    """In how many of 200 draws each thing occurs."""
    counts: collections.Counter[Any] = collections.Counter()
    for draw in drawn(strategy):
        counts.update(set(what_of(draw)))
    return counts


def missing(strategy: Any, what_of: Any, wanted: set[Any]) -> set[Any]:
    """The things that occur in none of 200 draws."""
    for draw in drawn(strategy):
        wanted = wanted - set(what_of(draw))
        if not wanted:
            break
    return wanted


CALLS = cases()


def form(node: Any) -> Any:
    """Equal for layers of one kind only."""
    leaves, treedef = jtu.tree_flatten(node)
    arrays = [(type(x) is np.ndarray, x.shape, x.dtype) for x in leaves if is_array(x)]
    return treedef, tuple(arrays)


KIND_OF = {form(layer(kind, np.random.default_rng(0))): kind for kind in LAYERS}


def parts_of(model: Any) -> set[Any]:
    """Every kind of thing that occurs in a model."""
    found: set[Any] = set()
    nodes = [("", model), *nodes_below("", model)]
    for _, node in nodes:
        found.add(type(node))
        if isinstance(node, eqx.Module):
            found.add(KIND_OF.get(form(node)))
        elif isinstance(node, dict):
            found |= {("key", key) for key in node}
            found |= {"integer keys" for key in node if isinstance(key, int)}
        elif node is None or node is jax.nn.relu:
            found.add(node)
    for kind, several in [
        ("one layer in two places", [n for _, n in nodes if isinstance(n, eqx.Module)]),
        ("one array in two places", [n for _, n in nodes if is_array(n)]),
    ]:
        if len({id(node) for node in several}) < len(several):
            found.add(kind)
    return found


def test_every_kind_of_part_occurs_in_the_models():
    assert len(KIND_OF) == len(LAYERS)
    wanted = {
        *(*LAYERS, *(("key", key) for key in KEYS), "integer keys"),
        *(Node, Pair, Record, Pile, list, tuple, dict, int, str, None, jax.nn.relu),
        *("one layer in two places", "one array in two places"),
    }
    assert not missing(CALLS, lambda case: parts_of(case[0]), wanted)


def forms_in(case: Any) -> set[Any]:
    """The parts of a call, and its outcomes."""
    model, call, mask = case
    found: set[Any] = {"specs" if "specs" in call else "one target" if "target" in call else "all"}
    found.add(("mask", type(mask).__name__ if mask is None or isinstance(mask, str) else "bools"))
    found |= {("call", form_of(call["wrappers"])) if "wrappers" in call else ("call", "no wrapper")}
    for spec in call.get("specs", ()):
        found |= {
            ("missing", key)
            for key in ("target", "wrapper", "rank", "alpha", "options")
            if key not in spec
        }
        if "wrapper" in spec:
            found.add(("spec", form_of(spec["wrapper"])))
    expected, finds_all = expected_of(model, call, mask)
    found.add("every rule finds something" if finds_all else "an error")
    if finds_all and expected.wrapped:
        found.add("wraps")
        found |= {"options"} if any(row[3] for row in expected.wrapped.values()) else set()
        if len(call.get("specs", ())) > 1:
            found.add("wraps by several specs")
    return (
        found
        | ({"carrying"} if expected.carrying else set())
        | ({"in a norm"} if expected.refused else set())
    )


def test_every_form_of_a_call_occurs_and_most_calls_wrap_something():
    counts = counted(CALLS, forms_in)
    wanted = {
        *("specs", "one target", "all", "an error", "options", "carrying", "in a norm"),
        *(("mask", kind) for kind in ("NoneType", "str", "bools")),
        *((where, kind) for where in ("call", "spec") for kind in FORMS),
        *(("missing", key) for key in ("target", "wrapper", "rank", "alpha", "options")),
        ("call", "no wrapper"),
    }
    assert not wanted - counts.keys()
    assert counts["wraps"] >= 80
    assert counts["wraps by several specs"] >= 5


def test_every_method_and_every_kind_of_layer_occurs_among_the_adapters():
    def found(case: Any) -> set[Any]:
        model, hows = case
        found: set[Any] = set()
        for how in hows:
            wrapped = wrapped_by(plan_lora(model, 2, **how.call))
            found |= {how.method, *how.options, *(kind_of(cls) for cls, *_ in wrapped.values())}
        return found

    kinds = {"Linear", "Conv", "ConvTranspose", "InNorm", "Embedding", "Recurrent", "Attention"}
    wanted = {*METHODS, *kinds, "adapter_dtype", "multiplier", "projections"}
    assert not missing(CASES, found, wanted)


def kind_of(cls: type[LoRAWrapper]) -> str:
    """The kind of layer that an adapter is for, by its name."""
    kinds = ("ConvTranspose", "Linear", "Conv", "InNorm", "Embedding", "Recurrent", "Attention")
    return next(kind for kind in kinds if cls.__name__.endswith(kind))


def test_the_random_layers_are_what_they_are_called():
    rng = np.random.default_rng(0)
    assert zoo.LoRALinear.applies_to(layer("duck", rng))
    assert zoo.LoRAConv.applies_to(layer("duck conv", rng))
    assert zoo.LoRALinear.stack_ndim(layer("stack", rng)) == 1
    assert zoo.LoRALinear.stack_ndim(layer("stack of stacks", rng)) == 2
    assert zoo.LoRAConv.stack_ndim(layer("stack of convs", rng)) == 1
    assert zoo.LoRALinear.stack_ndim(layer("stack of containers", rng).left) == 1
    assert isinstance(layer("adapted", rng), zoo.LoRALinear)
    assert zoo.LoRAInNorm.applies_to(layer("weight norm", rng))
    assert zoo.LoRAInNorm.applies_to(layer("weight norm of a conv", rng))
    assert {"NodeAdapter", "LoRALinear"} <= {name.split(":")[1] for name in INSTALLED}
    assert len(REGISTRY.records()) > 3
