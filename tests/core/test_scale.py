"""Models may be as deep as JAX takes them; how fast large ones are is for `benchmarks/scale.py`."""

import pathlib
import subprocess
import sys
import textwrap

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
