"""Work grows no faster than what there is to do: counted in calls of Python, not timed."""

import functools

import equinox as eqx
import jax
import pytest
from benchmarks.scale import calls_of

from jno.lora import (
    Registry,
    apply_lora,
    load_adapters,
    lora_report,
    merge_lora,
    partial_lora_trainable_filter,
    plan_lora,
    save_adapters,
)

from .toys import ToyLinear

KEY = jax.random.key(0)
LAYER = eqx.nn.Linear(2, 2, key=KEY)
SIZES = (8, 16, 32)


def expect_linear(counts):
    """Twice as much more to do is twice as much more work: 4 times would be quadratic."""
    small, middle, large = counts
    assert 0 < large - middle <= 2.1 * (middle - small) + 0.05 * small, counts


def wide(size):
    return {"layers": [LAYER] * size}


def deep(size):
    model = [LAYER]
    for _ in range(size):
        model = [LAYER, model]
    return model


SETTINGS = {"wrappers": ToyLinear, "registry": Registry(discover=False)}
OPERATIONS = {
    "plan": lambda model, _, file: plan_lora(model, 1, **SETTINGS),
    "apply": lambda model, _, file: apply_lora(model, 1, key=KEY, **SETTINGS),
    "partial filter": lambda _, adapted, file: partial_lora_trainable_filter(adapted),
    "report": lambda _, adapted, file: lora_report(adapted),
    "merge": lambda _, adapted, file: merge_lora(adapted),
    "save": lambda _, adapted, file: save_adapters(adapted, file),
    "load": lambda model, _, file: load_adapters(model, file, wrappers=ToyLinear),
}


@functools.cache
def prepared(form, size):
    model = form(size)
    adapted = apply_lora(model, 1, key=KEY, **SETTINGS)
    return model, adapted


@pytest.mark.parametrize(
    ("name", "form"),
    [
        *((name, wide) for name in OPERATIONS),
        *((name, deep) for name in ("plan", "apply", "merge")),
    ],
)
def test_the_work_of_an_operation_grows_linearly(name, form, registry, tmp_path):
    counts = []
    for size in SIZES:
        model, adapted = prepared(form, size)
        if name == "load":
            save_adapters(adapted, tmp_path / "file")
        operation = functools.partial(OPERATIONS[name], model, adapted, tmp_path / "file")
        operation()  # compiles
        counts.append(calls_of(operation, rounds=1))
    expect_linear(counts)


def test_planning_grows_linearly_with_the_specs():
    model, counts = wide(48), []
    for size in SIZES:
        specs = [{"target": f"/{n}$", "rank": 1 + n % 2} for n in range(size)]
        plan = functools.partial(plan_lora, model, 1, specs=specs, **SETTINGS)
        plan()
        counts.append(calls_of(plan, rounds=1))
    expect_linear(counts)
