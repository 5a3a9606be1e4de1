"""Deep models, many specs and many wrappers work; how fast they do is for `benchmarks/scale.py`."""

import pathlib
import re
import subprocess
import sys
import textwrap

import equinox as eqx
import jax
import pytest

from jno.lora import JnoLoraWarning, Registry, SelectionError, apply_lora, plan_lora

from .toys import ToyLinear, ToyScale, adapters_in

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


def test_models_may_be_as_deep_as_jax_takes_them(tmp_path):
    # Within Python's own limit: as deep as JAX's tree functions go, but for some frames.
    command = [sys.executable, "-c", textwrap.dedent(DEEP), "900", "1000", tmp_path / "file"]
    root = pathlib.Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
    assert "loaded" in done.stdout


def test_each_of_a_hundred_specs_takes_its_layer():
    layer = eqx.nn.Linear(2, 2, key=jax.random.key(0))
    model = {"layers": [layer] * 100}
    expected = [(f"layers/{n}", 1 + n % 2, (ToyLinear, ToyScale)[n % 3 == 0]) for n in range(100)]
    specs = [{"target": f"{p}$", "rank": rank, "wrapper": cls} for p, rank, cls in expected]
    plan = plan_lora(model, specs=specs)
    assert [(row.path, row.rank, row.wrapper) for row in plan.wrapped] == expected
    adapters = adapters_in(apply_lora(model, specs=specs, key=jax.random.key(0)))
    assert [type(adapter) for adapter in adapters.values()] == [row.wrapper for row in plan.wrapped]
    specs.append({"target": "", "wrapper": ToyLinear, "rank": 1})
    problem = plan_lora(model, specs=specs).problem
    assert problem is not None
    assert re.match(r"specs\[100\] .* selects no layer", problem)


def test_the_adapters_of_many_plugins_are_found_and_told_apart_and_one_that_fails_is_left_out(site):
    site.install_zoo()
    for plugin in range(40):
        names = (f'"Adapter{plugin}_{n}", variant="v{n}", layer=eqx.nn.Conv' for n in range(3))
        # One of each takes linear layers, all of the same variant.
        site.plugin(f"plugin-{plugin:02}", *names, f'"Last{plugin}", variant="last"')
    site.install("plugin-15b", "raise RuntimeError('broken')")
    registry = Registry()
    with pytest.warns(JnoLoraWarning, match="plugin-15b"):
        records = registry.records()
    assert [r.distribution for r in records if r.status != "loaded"] == ["plugin-15b"]
    assert sum(len(record.wrappers) for record in records) == 3 + 40 * 4
    assert registry.resolve("Adapter39_2")[0].variant == "v2"
    assert len(registry.resolve("v1")) == 40
    layer = eqx.nn.Linear(2, 2, key=jax.random.key(0))
    in_order = [f"Last{n}" for n in range(39, -1, -1)]
    (row,) = plan_lora([layer], 1, wrapper=in_order, registry=registry).wrapped
    assert (row.wrapper.__name__, row.distribution) == ("Last39", "plugin-39")
    with pytest.raises(SelectionError, match="and 28 more"):
        plan_lora([layer], 1, wrapper="last", registry=registry)
    with pytest.raises(SelectionError, match="nearest names are 'Adapter"):
        registry.resolve("Adapter39_9")
