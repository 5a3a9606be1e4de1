"""The exports and imports of `jno.lora`, and its errors about names that it lacks."""

import json
import os
import pathlib
import pydoc
import re
import subprocess
import sys
import textwrap

import pytest

import jno
import jno.lora
import jno.lora.extending
from jno.lora import PluginError

from .toys import ToyLinear

ROOT = pathlib.Path(__file__).parents[2]
ZOO = ("DoRALinear", "LoRAConv", "OFTLinear")


@pytest.mark.parametrize("module", [jno.lora, jno.lora.extending])
def test_every_exported_name_exists_is_documented_and_listed_once(module):
    assert len(set(module.__all__)) == len(module.__all__)
    for name in set(module.__all__) - {"RESERVED_WORDS", "Weights"}:
        assert getattr(module, name).__doc__, name


def test_without_a_plugin_that_adds_sets_up_a_net_says_what_to_install(registry, model):
    net = jno.lora.Net(model).lora(1, wrapper=ToyLinear).add_adapter("a")
    net.add_adapter("b", net.adapter("a"))
    with pytest.raises(PluginError, match=r'add sets of adapters up.*\n.*"jno-lora\[zoo\]"'):
        net.activate("a", "b")
    assert net.active == "a"


def test_the_core_names_no_plugin_but_the_zoo_in_one_error():
    """Names and strings of the sources; type checkers read the first two."""
    plugins = "|".join(path.name.removeprefix("jno-lora-") for path in ROOT.glob("plugins/*"))
    named = re.compile(rf"jno[-_]lora[-_]({plugins})")
    lines = [
        line.strip()
        for path in sorted((ROOT / "src").rglob("*.py"))
        for line in path.read_text().splitlines()
        if named.search(line)
    ]
    assert lines == [
        "from jno_lora_zoo import adapters as _adapters",
        "from jno_lora_zoo.adapters import *  # noqa: F403  # pyright: ignore",
        'ZOO_DISTRIBUTION = "jno-lora-zoo"',
    ]


def test_names_that_the_core_lacks_are_attribute_errors():
    exec("from jno.lora import *", {})
    with pytest.raises(AttributeError, match=r"module 'jno.lora' has no attribute 'plam'"):
        _ = jno.lora.plam


def test_dir_lists_the_zoo_and_imports_no_other_plugin(site):
    assert not set(dir(jno.lora)) & set(ZOO)
    text = pydoc.plain(pydoc.render_doc(jno.lora))  # needs each name that `dir` lists
    assert all(f"{name}(" in text for name in ("swap_adapters", "apply_lora"))
    zoo, module = site.install_zoo(), site.plugin("acme-lora", '"Acme"')
    jno.lora.refresh()
    listed = set(dir(jno.lora))
    assert listed >= {"LoRALinear", "LoRAConv", "DoRALinear"} | set(jno.lora.__all__)
    assert not [x for x in listed if x[0] == "_" != x[1] or x in ("Any", "TYPE_CHECKING")]
    assert zoo in sys.modules and module not in sys.modules


def test_a_zoo_name_comes_from_whichever_distribution_is_the_zoo(site):
    message = r'(?s)DoRALinear is not available: .* is not installed.*install -U "jno-lora\[zoo\]"'
    with pytest.raises(ImportError, match=message) as caught:
        exec("from jno.lora import DoRALinear")
    assert isinstance(caught.value, PluginError)
    module = site.install_zoo()
    jno.lora.refresh()
    for name in ("apply_lore", "APPLY", "_DoRALinear"):  # not in camel case: nothing is loaded
        with pytest.raises(AttributeError, match=f"has no attribute '{name}'"):
            getattr(jno.lora, name)
    assert module not in sys.modules
    from jno.lora import DoRALinear

    assert DoRALinear is sys.modules[module].DoRA
    for name in ("OFTConv", "DoRALiner"):
        with pytest.raises(ImportError, match=name):
            exec(f"from jno.lora import {name}")
        with pytest.raises(AttributeError, match=f"module 'jno.lora' has no attribute '{name}'"):
            getattr(jno.lora, name)


def test_jno_is_a_namespace_that_others_may_share(tmp_path, monkeypatch):
    assert jno.__spec__.origin is None
    (tmp_path / "jno").mkdir()
    (tmp_path / "jno" / "somebody_elses.py").write_text("VALUE = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    from jno.somebody_elses import VALUE

    assert VALUE == 1
    monkeypatch.delitem(sys.modules, "jno.somebody_elses")


SCRIPT = """
    import json, sys, warnings
    import jno.lora
    heavy = {"importlib_metadata", "rich", "click", "safetensors", "matplotlib", "optax"}
    heavy.add("logging.config")
    modules = set(sys.modules)
    plugins = [m for m in modules if m.startswith("jno_lora")]

    import equinox as eqx, jax, jax.numpy as jnp
    from jno.lora import Net, apply_lora
    from tests.core.toys import ToyLinear as Mine

    key = jax.random.key(0)
    model = [eqx.nn.Linear(2, 2, key=key)]
    adapted = Net(model).lora(2, wrapper=Mine).module
    jno.lora.save_adapters(adapted, sys.argv[1])
    loading = dict(strict=False, wrappers=[Mine])
    nan = eqx.tree_at(lambda m: m[0].lora_B, adapted, jnp.full((2, 2), jnp.nan))
    jno.lora.save_adapters(nan, sys.argv[2])
    tuned = Net([*adapted, eqx.nn.Linear(2, 2, key=key)])
    calls = {
        "saved, Net": lambda: tuned.save_adapters(sys.argv[3]),
        "left out, load_adapters": lambda: jno.lora.load_adapters([], sys.argv[1], **loading),
        "left out, both": lambda: jno.lora.load_adapters(Net([]), sys.argv[1], **loading),
        "nan, read_adapters": lambda: jno.lora.read_adapters(sys.argv[2], wrappers=[Mine]),
        "masked, Net": lambda: Net(model).mask("x").lora(1, wrapper=Mine),
        "adapted, apply_lora": lambda: apply_lora(adapted, 1, key=key, wrapper=Mine),
    }
    origins = {}
    for name, call in calls.items():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
        origins[name] = [w.filename for w in caught]
    later = [m for m in sys.modules if m.startswith("jno_lora")]
    print(json.dumps([sorted(heavy & modules), plugins, later, origins]))
"""


def test_the_core_and_a_wrapper_of_ones_own_import_no_plugin_and_nothing_heavy(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    files = [str(tmp_path / name) for name in "abc"]
    path = {"PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
    command = [sys.executable, str(script), *files]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | path)
    assert done.returncode == 0, done.stderr
    heavy, plugins, later, origins = json.loads(done.stdout)
    assert (heavy, plugins, later) == ([], [], [])
    # A warning points at the line of the user.
    assert len(origins) == 6
    for call, files in origins.items():
        assert files == [str(script)], call
