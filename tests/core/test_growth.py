"""Work and memory grow no faster than what there is to do. Counted, not timed.

Work is the number of functions that Python calls. `benchmarks/scale.py` measures seconds, at sizes
up to 10,000 layers.
"""

import functools
import gc
import itertools

import equinox as eqx
import jax
import pytest
from benchmarks.scale import calls_of, mib_of

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
SIZES = (16, 32, 64)


@pytest.fixture(autouse=True, scope="module")
def earlier_objects():
    """Lets the measures, which collect garbage first, not look at what earlier tests have left."""
    gc.collect()
    gc.freeze()


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
    "plan": lambda model, adapted, file: plan_lora(model, 1, **SETTINGS),
    "apply": lambda model, adapted, file: apply_lora(model, 1, key=KEY, **SETTINGS),
    "partial filter": lambda model, adapted, file: partial_lora_trainable_filter(adapted),
    "report": lambda model, adapted, file: lora_report(adapted),
    "merge": lambda model, adapted, file: merge_lora(adapted),
    "save": lambda model, adapted, file: save_adapters(adapted, file),
    "load": lambda model, adapted, file: load_adapters(model, file, wrappers=ToyLinear),
}


@pytest.fixture(scope="module")
def operation(tmp_path_factory):
    """An operation on a model of a size, which ran once: what is compiled is compiled once."""
    folder = tmp_path_factory.mktemp("growth")

    @functools.cache
    def prepared(form, size):
        model = form(size)
        adapted = apply_lora(model, 1, key=KEY, **SETTINGS)
        file = folder / f"{form.__name__}-{size}.safetensors"
        save_adapters(adapted, file, registry=SETTINGS["registry"])
        return model, adapted, file

    def of(name, form, size):
        function = functools.partial(OPERATIONS[name], *prepared(form, size))
        function()
        return function

    return of


@pytest.mark.parametrize(
    ("name", "form"),
    [
        *((name, wide) for name in OPERATIONS),
        *((name, deep) for name in ("plan", "apply", "merge")),
    ],
)
def test_the_work_of_an_operation_grows_linearly(name, form, operation, registry):
    expect_linear([calls_of(operation(name, form, size), rounds=1) for size in SIZES])


@pytest.mark.parametrize("name", ["plan", "apply", "merge", "load"])
def test_the_memory_of_an_operation_grows_linearly(name, operation, registry):
    # Not for the deep model, whose paths are longer the deeper it is. Dicts grow in steps.
    small, large = (operation(name, wide, size) for size in (SIZES[0], SIZES[-1]))
    # Two runs, since each also counts what other threads allocate meanwhile.
    limit = 1.5 * (SIZES[-1] / SIZES[0]) * min(mib_of(small, rounds=1) for _ in range(2))
    assert any(mib_of(large, rounds=1) <= limit for _ in range(2))


def test_planning_grows_linearly_with_the_specs():
    model, counts = wide(96), []
    for size in SIZES:
        specs = [{"target": f"/{n}$", "rank": 1 + n % 2} for n in range(size)]
        plan = functools.partial(plan_lora, model, 1, specs=specs, **SETTINGS)
        plan()
        counts.append(calls_of(plan, rounds=1))
    expect_linear(counts)


def test_finding_grows_linearly_with_the_plugins(site):
    counts, names = [], iter(range(32))
    for size in (8, 16, 32):
        for number in itertools.islice(names, size - size // 2 if counts else size):
            site.plugin(f"plugin-{number:02}", f'"Adapter{number}"')
        assert len(Registry().records()) == size  # imports the modules
        counts.append(calls_of(lambda: Registry().records(), rounds=1))
    expect_linear(counts)
