"""Work grows no faster than what there is to do, and models may be as deep as JAX takes them.

Work is counted in calls of Python, not timed; for how fast it is, see `benchmarks/scale.py`.
"""

import functools
import pathlib
import subprocess
import sys
import textwrap

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


# --- depth

# In a process of its own: what is left of the stack must not depend on who runs the test, and JAX
# does not give back what a `RecursionError` of its own took.
DEEP = """
    import sys
    import equinox as eqx, jax
    from jno.lora import *
    from tests.core.toys import ToyScale

    depth, limit, file = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    sys.setrecursionlimit(limit)

    layer = eqx.nn.Linear(2, 2, key=jax.random.key(0))
    model = {"bottom": layer}
    for _ in range(depth):
        model = [model]
    model = {"deep": model, "top": layer}
    leaves = jax.tree.leaves(model)
    registry = Registry(discover=False)
    settings = dict(wrapper=ToyScale, registry=registry)
    paths = [row.path for row in plan_lora(model, 1, **settings).wrapped]
    assert paths == ["deep/" + "0/" * depth + "bottom", "top"]
    adapted = apply_lora(model, 1, key=jax.random.key(0), **settings)
    assert sum(jax.tree.leaves(lora_trainable_filter(adapted))) == 2
    assert sum(jax.tree.leaves(partial_lora_trainable_filter(adapted))) == 2
    assert jax.tree.structure(merge_lora(adapted)) == jax.tree.structure(model)
    assert all(map(lambda x, y: x is y, jax.tree.leaves(unwrap_lora(adapted)), leaves))
    assert len(lora_report(adapted).rows) == 2
    net = Net(model, registry=registry).freeze().lora(1, wrapper=ToyScale)
    assert len(jax.tree.leaves(net.partition()[0])) == 2
    assert len(net.unwrap().plan(1, wrapper=ToyScale).wrapped) == 2
    save_adapters(adapted, file, registry=registry)
    loaded = load_adapters(model, file, wrappers=[ToyScale], registry=registry)
    assert jax.tree.structure(loaded) == jax.tree.structure(adapted)
    print("loaded")
"""


@pytest.mark.slow
def test_models_may_be_as_deep_as_jax_takes_them(tmp_path):
    # Within Python's own limit: as deep as JAX's tree functions go, but for some frames.
    command = [sys.executable, "-c", textwrap.dedent(DEEP), "900", "1000", tmp_path / "file"]
    root = pathlib.Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
    assert "loaded" in done.stdout
