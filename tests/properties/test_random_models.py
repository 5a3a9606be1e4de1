"""The random models, calls and adapters have all that they are said to have."""

import collections
from typing import Any

import equinox as eqx
import jax
import jax.tree_util as jtu
import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings

from .naive import is_array, nodes_below
from .odd_nodes import Node, Pair, Pile, Record
from .random_calls import FORMS, form_of
from .random_models import KEYS, LAYERS, layer
from .test_selection import cases, expected_of


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


def form(node: Any) -> Any:
    """Equal for layers of one kind only."""
    leaves, treedef = jtu.tree_flatten(node)
    arrays = [(type(x) is np.ndarray, x.shape, x.dtype) for x in leaves if is_array(x)]
    return treedef, tuple(arrays)


KIND_OF = {form(layer(kind, np.random.default_rng(0))): kind for kind in LAYERS}


def parts_of(model: Any) -> set[Any]:
    """Every kind of thing that occurs in a model."""
    found: set[Any] = set()
    for _, node in (("", model), *nodes_below("", model)):
        found.add(type(node))
        if isinstance(node, eqx.Module):
            found.add(KIND_OF.get(form(node)))
        elif isinstance(node, dict):
            found |= {("key", key) for key in node}
        elif node is None or node is jax.nn.relu:
            found.add(node)
    arrays = [node for _, node in nodes_below("", model) if is_array(node)]
    if len({id(node) for node in arrays}) < len(arrays):
        found.add("one array in two places")
    return found


def forms_in(model: Any, call: Any, mask: Any) -> set[Any]:
    """The parts of a call, and its outcomes."""
    found: set[Any] = {"specs" if "specs" in call else "one target" if "target" in call else "all"}
    found.add(("mask", type(mask).__name__ if mask is None or isinstance(mask, str) else "bools"))
    found |= {("call", form_of(call["wrappers"])) if "wrappers" in call else ("call", "no wrapper")}
    for spec in call.get("specs", ()):
        found |= {("missing", key) for key in SPEC if key not in spec}
        if "wrapper" in spec:
            found.add(("spec", form_of(spec["wrapper"])))
    expected, finds_all = expected_of(model, call, mask)
    outcomes = {
        "an error": not finds_all,
        "wraps": finds_all and expected.wrapped,
        "options": finds_all and any(row[3] for row in expected.wrapped.values()),
        "carrying": expected.carrying,
        "in a norm": expected.refused,
    }
    return found | {name for name, happens in outcomes.items() if happens}


SPEC = ("target", "wrapper", "rank", "alpha", "options")
WANTED = {
    *(*LAYERS, *(("key", key) for key in KEYS), "one array in two places"),
    *(Node, Pair, Record, Pile, list, tuple, dict, int, str, None, jax.nn.relu),
    *("specs", "one target", "all", "an error", "options", "carrying", "in a norm"),
    *(("mask", kind) for kind in ("NoneType", "str", "bools")),
    *((where, kind) for where in ("call", "spec") for kind in FORMS),
    *(("missing", key) for key in SPEC),
    ("call", "no wrapper"),
}


def test_every_part_of_models_and_calls_occurs_and_most_calls_wrap_something():
    assert len(KIND_OF) == len(LAYERS)
    counts: collections.Counter[Any] = collections.Counter()
    for model, call, mask in drawn(cases()):
        counts.update(parts_of(model) | forms_in(model, call, mask))
    assert not WANTED - counts.keys()
    assert counts["wraps"] >= 80
