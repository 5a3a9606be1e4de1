"""Deep models, many specs and many wrappers work; how fast they do is for `benchmarks/scale.py`."""

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

    depth, limit, file = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    sys.setrecursionlimit(limit)

    class Scale(LoRAWrapper):
        adapter_fields = ("gain",)
        base: eqx.Module
        gain: jax.Array
        rank: int = eqx.field(static=True)
        alpha: float = eqx.field(static=True)
        @classmethod
        def applies_to(cls, leaf): return isinstance(leaf, eqx.nn.Linear)
        def __init__(self, base, rank, alpha, *, key):
            self.base, self.rank, self.alpha = base, rank, alpha
            self.gain = jax.numpy.ones(())
        def __call__(self, x): return self.merge()(x)
        def merge(self):
            return eqx.tree_at(lambda l: l.weight, self.base, self.gain * self.base.weight)

    layer = eqx.nn.Linear(2, 2, key=jax.random.key(0))
    model = {"bottom": layer}
    for _ in range(depth):
        model = [model]
    model = {"deep": model, "top": layer}
    leaves = jax.tree.leaves(model)
    registry = Registry(discover=False)
    settings = dict(wrapper=Scale, registry=registry)
    paths = [row.path for row in plan_lora(model, 1, **settings).wrapped]
    assert paths == ["deep/" + "0/" * depth + "bottom", "top"]
    adapted = apply_lora(model, 1, key=jax.random.key(0), **settings)
    assert sum(jax.tree.leaves(lora_trainable_filter(adapted))) == 2
    assert sum(jax.tree.leaves(partial_lora_trainable_filter(adapted))) == 2
    assert jax.tree.structure(merge_lora(adapted)) == jax.tree.structure(model)
    assert all(map(lambda x, y: x is y, jax.tree.leaves(unwrap_lora(adapted)), leaves))
    assert len(lora_report(adapted).rows) == 2
    net = Net(model, registry=registry).freeze().lora(1, wrapper=Scale)
    assert len(jax.tree.leaves(net.partition()[0])) == 2
    assert len(net.unwrap().plan(1, wrapper=Scale).wrapped) == 2
    try:
        save_adapters(adapted, file, registry=registry)
    except CheckpointError as err:
        print(err)
    else:
        loaded = load_adapters(model, file, wrappers=[Scale], registry=registry)
        assert jax.tree.structure(loaded) == jax.tree.structure(adapted)
        print("loaded")
"""


# Within Python's own limit: as deep as JAX's tree functions go, but for some frames.
DEPTHS = [(900, 1000, "loaded")]
if sys.version_info < (3, 12):
    # With a higher one, any depth. Later interpreters do not raise the limit of what is written in
    # C, as JAX's tree functions are.
    DEPTHS.append((2000, 10_000, "loaded"))


@pytest.mark.parametrize(("depth", "limit", "says"), DEPTHS)
def test_models_may_be_as_deep_as_jax_takes_them(depth, limit, says, tmp_path):
    arguments = [str(depth), str(limit), str(tmp_path / "file")]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(DEEP), *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert says in done.stdout


@pytest.mark.parametrize("limit", [1000, 10_000])
def test_no_limit_is_lower_than_the_one_of_jax(limit, tmp_path):
    # Of interpreters, some count the calls inside JAX's tree functions and some do not.
    flatten = f"""
        import sys
        import equinox as eqx, jax
        sys.setrecursionlimit({limit})
        model = eqx.nn.Linear(1, 1, key=jax.random.key(0))
        for _ in range(2000):
            model = [model]
        jax.tree.leaves(model)
    """
    theirs, ours = (
        subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code), "2000", str(limit), str(tmp_path / "f")],
            capture_output=True,
            text=True,
        )
        for code in (flatten, DEEP)
    )
    assert (ours.returncode == 0) == (theirs.returncode == 0)
    if theirs.returncode != 0:
        assert "RecursionError" in theirs.stderr and "RecursionError" in ours.stderr
        # At the script's own `jax.tree.leaves(model)`: such a model is of no use to anybody.
        assert "plan_lora" not in ours.stderr


def test_each_of_three_hundred_specs_takes_its_layer():
    layer = eqx.nn.Linear(2, 2, key=jax.random.key(0))
    model = {"layers": [layer] * 300}
    specs = [
        {"target": f"/{n}$", "rank": 1 + n % 2, "wrapper": (ToyLinear, ToyScale)[n % 3 == 0]}
        for n in range(300)
    ]
    plan = plan_lora(model, specs=specs)
    assert [(row.path, row.rank, row.wrapper) for row in plan.wrapped] == [
        (f"layers/{n}", 1 + n % 2, (ToyLinear, ToyScale)[n % 3 == 0]) for n in range(300)
    ]
    adapters = adapters_in(apply_lora(model, specs=specs, key=jax.random.key(0)))
    assert [type(adapter) for adapter in adapters.values()] == [row.wrapper for row in plan.wrapped]
    specs.append({"target": "", "wrapper": ToyLinear, "rank": 1})
    problem = plan_lora(model, specs=specs).problem
    assert problem is not None
    assert re.match(r"specs\[300\] .* selects no layer", problem)


def test_a_thousand_wrappers_of_a_hundred_plugins_are_found_and_told_apart(site):
    site.install_zoo()
    for plugin in range(100):
        names = (f'"Adapter{plugin}_{n}", variant="v{n}", layer=eqx.nn.Conv' for n in range(9))
        # One of each takes linear layers, all of the same variant.
        site.plugin(f"plugin-{plugin:02}", *names, f'"Last{plugin}", variant="last"')
    registry = Registry()
    records = registry.records()
    assert [record.status for record in records] == ["loaded"] * 101
    assert sum(len(record.wrappers) for record in records) == 1003
    assert registry.resolve("Adapter99_8")[0].variant == "v8"
    assert len(registry.resolve("v3")) == 100
    layer = eqx.nn.Linear(2, 2, key=jax.random.key(0))
    in_order = [f"Last{n}" for n in range(99, -1, -1)]
    (row,) = plan_lora([layer], 1, wrapper=in_order, registry=registry).wrapped
    assert (row.wrapper.__name__, row.distribution) == ("Last99", "plugin-99")
    with pytest.raises(SelectionError, match="and 88 more"):
        plan_lora([layer], 1, wrapper="last", registry=registry)
    with pytest.raises(SelectionError, match="nearest names are 'Adapter"):
        registry.resolve("Adapter99_9")


def test_a_plugin_that_fails_among_a_hundred_is_the_only_one_that_is_left_out(site):
    for plugin in range(30):
        site.plugin(f"plugin-{plugin:02}", f'"Adapter{plugin}"')
    site.install("plugin-15b", "raise RuntimeError('broken')")
    registry = Registry()
    with pytest.warns(JnoLoraWarning, match="plugin-15b"):
        records = registry.records()
    assert [r.distribution for r in records if r.status != "loaded"] == ["plugin-15b"]
    assert len(records) == 31
