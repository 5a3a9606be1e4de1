"""Standing in for the adapters of jNO: of a small package `jno` that is built like it."""

import os
import pathlib
import re
import sys

import pytest

import jno_lora_jno
from jno_lora_jno._installs import find_bad_installs


def test_importing_jno_or_the_plugin_lets_it_use_ours(site):
    site.run(
        """
        import jno_lora_jno, jno, sys
        # The other plugins load when they are needed.
        assert not {"jno_lora_zoo", "jno_lora_arrays", "jno_lora_e3nn"} & set(sys.modules)
        from jno.lora import DoRALinear
        import jno_lora_jno
        from jno.trace import ModelCall
        assert jno_lora_jno.is_enabled() and jno_lora_jno.enable is jno_lora_jno.enable
        assert jno.Model.lora.__wrapped__.__module__ == "jno.trace"
        raises(SelectionError, "last solve", jno_lora_jno.trained_adapters, jno.Model(model))
        raises(SelectionError, "jno.nn.wrap", jno_lora_jno.trained_adapters, 3)
        net = jno.Model(model).lora(2, wrapper="dora", options={"multiplier": 0.5})
        jno.core().solve(net, jax.random.key(1))
        assert isinstance(net.adapted.layers[0], DoRALinear)
        assert set(jno_lora_jno.trained_adapters(net)) == {"layers/0", "layers/1"}
        assert type(net.module.layers[0]) is eqx.nn.Linear
        jno.core().solve(jno.Model(model).lora(2, 1.0, "pissa"), jax.random.key(1))
        # A spec takes missing values from the call.
        net = jno.Model(model)
        specs = [{"target": "0", "wrapper": "dora"}, {"rank": 3, "options": {"multiplier": 2.0}}]
        assert ModelCall(net).lora(2, 4.0, specs=specs, wrapper="lora").model is net
        assert net._lora_config == [
            {"target": "0", "rank": 2, "alpha": 4.0, "wrappers": ("dora",)},
            {"target": None, "rank": 3, "alpha": 4.0, "wrappers": ("lora",),
             "options": {"multiplier": 2.0}},
        ]
        """
    )


@pytest.mark.slow
def test_a_wrong_call_raises_at_once_and_changes_nothing(site):
    site.run(
        """
        import jno
        from jno.architectures.lora import DoRALinear, apply_lora
        net = jno.Model(model)
        raises(SelectionError, "'dora'", net.lora, wrapper="doar")
        raises(SelectionError, "did you mean 'rank'", net.lora, specs=[{"rnk": 2}])
        raises(SelectionError, "integer of at least 1", net.lora, rank=0)
        raises(SelectionError, "into each spec", net.lora, target="a", specs=[{"rank": 2}])
        raises(SelectionError, "jno.lora.DoRALinear", net.lora, wrapper=DoRALinear)
        raises(SelectionError, "No adapter or variant", net.tune, lora=[None, (4, 1.0, "nope")])
        raises(SelectionError, "(rank, alpha, wrapper)", net.tune, lora=[4])
        assert net._lora_config is None
        net.tune(lora=[(4, 1.0), (4, 1.0, "dora"), None], freeze=[True])
        # A mask may come from another instance, and hold arrays only.
        other = eqx.nn.MLP(3, 3, 4, 1, activation=lambda x: x, key=jax.random.key(1))
        no = jax.tree.map(lambda _: False, eqx.filter(other, eqx.is_array))
        mask = eqx.tree_at(lambda m: m.layers[1].weight, no, True)
        spec = {"target": None, "rank": 2, "alpha": 1.0, "wrappers": ("lora",)}
        adapted = apply_lora(model, key=jax.random.key(2), specs=[spec], param_mask=mask)
        assert type(adapted.layers[0]) is eqx.nn.Linear is not type(adapted.layers[1])
        raises(SelectionError, "elsewhere/weight", apply_lora, model, key=jax.random.key(2),
               specs=[spec], param_mask={"elsewhere": {"weight": True}})
        """
    )


@pytest.mark.slow
def test_disable_gives_jno_everything_back(site):
    site.run(
        """
        import jno, sys
        import jno_lora_jno
        names = ["jno.core", "jno.trace", "jno.architectures.lora"]
        mine = lambda: {(n, k): v for n in names for k, v in vars(sys.modules[n]).items()
                        if "lora" in k.lower() or "wrappers" in k}
        ours, methods = mine(), dict(vars(jno.Model))
        jno_lora_jno.disable()
        jno_lora_jno.disable()
        assert not jno_lora_jno.is_enabled()
        theirs = mine()
        assert all(theirs[key] is not ours[key] for key in ours)
        assert sys.modules["jno.core"]._apply_lora(model, key=None) == "theirs"
        import jno.late  # while disabled
        with jno_lora_jno.enabled():
            assert jno_lora_jno.is_enabled() and mine() != theirs
            assert jno.late.apply_lora is sys.modules["jno.core"]._apply_lora
        assert not jno_lora_jno.is_enabled()
        assert all(theirs[key] is value for key, value in mine().items())
        jno_lora_jno.enable()
        jno_lora_jno.enable()
        with jno_lora_jno.enabled(False):
            assert jno.late.apply_lora(model, key=None) == "theirs"
        assert jno_lora_jno.is_enabled()
        assert all(ours[key] is value for key, value in mine().items())
        """
    )


@pytest.mark.slow
@pytest.mark.parametrize("variable", [{"JNO_LORA_JNO": "0"}, {"JNO_LORA_BLOCK": "jno-lora-jno"}])
def test_switched_off_by_the_environment(site, variable):
    program = """
        import jno, sys
        assert sys.modules["jno.core"]._apply_lora(None, key=None) == "theirs"
        """
    site.run(program, start="", **variable)


@pytest.mark.slow
def test_an_unknown_jno_is_refused_and_nothing_is_changed(site):
    site.change("architectures/lora.py", "param_mask=None", "param_mask=None, spread=1")
    site.change("architectures/lora.py", "merge_lora(model)", "merge_lora(further, model)")
    site.change("trace.py", "lora(self, rank=4, alpha=1.0,", "lora(self, alpha=1.0, rank=4,")
    site.run(
        """
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            import jno, sys
        import jno_lora_jno
        assert not jno_lora_jno.is_enabled()
        from jno.trace import ModelCall
        for said in ("jNO", "spread", "further", "alpha, rank in this order"):
            raises(JnoLoraError, said, jno_lora_jno.enable)
            raises(JnoLoraError, said, ModelCall(None).lora)
        assert sys.modules["jno.core"]._apply_lora(model, key=None) == "theirs"
        """
    )


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("-W", "error::UserWarning")])
def test_importing_jno_never_fails_because_of_ours(site, options):
    site.change("architectures/lora.py", "def apply_lora", "def apply_adapters")
    site.change("core.py", "apply_lora as _apply_lora, ", "")
    said = site.run(
        """
        import jno
        from jno.lora import JnoLoraError
        try:
            jno.Model(None).lora(rank=4)
        except JnoLoraError as err:
            assert "apply_lora is missing" in str(err) and "JNO_LORA_JNO=0" in str(err), err
        else:
            raise AssertionError
        """,
        start="",
        options=options,
    )
    assert said.count("JnoLoraWarning") == (0 if options else 1)


@pytest.mark.slow
def test_a_package_of_another_kind_gets_a_warning_only(site):
    (site.package / "architectures" / "lora.py").unlink()
    for name, text in {"__init__.py": "from . import lora", "core.py": "", "trace.py": ""}.items():
        (site.package / name).write_text(text)
    assert "has no module jno.architectures.lora" in site.run("import jno", start="")


(PACKAGES,) = (pathlib.Path(path) for path in sys.path if path.endswith("site-packages"))


@pytest.fixture
def core_alone(tmp_path):
    """Options and a path for `site.run`: the installed libraries without our plugins."""
    libraries = tmp_path / "libraries"
    libraries.mkdir()
    for entry in PACKAGES.iterdir():
        if not entry.name.startswith(("jno_lora", "_")) and entry.suffix != ".pth":
            (libraries / entry.name).symlink_to(entry)
    return {"options": ("-S",), "PYTHONPATH": f"{tmp_path}{os.pathsep}{libraries}"}


@pytest.mark.slow
def test_without_the_zoo_the_error_says_what_to_install(site, tmp_path, core_alone):
    package = pathlib.Path(jno_lora_jno.__file__).parent
    for entry in (package, *PACKAGES.glob("jno_lora_jno-*.dist-info")):
        (tmp_path / "libraries" / entry.name).symlink_to(entry)
    site.run(
        """
        import jno
        from jno.lora import PluginError
        raises(PluginError, 'pip install -U "jno-lora[zoo]"', jno.Model(model).lora)
        """,
        **core_alone,
    )


@pytest.mark.slow
def test_without_the_plugin_jno_keeps_its_own_and_a_warning_says_what_to_install(site, core_alone):
    program = """
        import jno, sys
        assert sys.modules["jno.core"]._apply_lora(None, key=None) == "theirs"
        """
    said = site.run(program, start="", **core_alone)
    assert said.count("JnoLoraWarning") == 1 and 'pip install "jno-lora[jno]"' in said
    assert "JnoLoraWarning" not in site.run(program, start="", JNO_LORA_JNO="0", **core_alone)


def test_without_jno_there_is_nothing_to_enable():
    import jno_lora_jno
    from jno.lora import JnoLoraError

    assert not jno_lora_jno.is_enabled()
    with pytest.raises(JnoLoraError, match="jNO is not installed"):
        jno_lora_jno.enable()
    jno_lora_jno.disable()


@pytest.mark.slow
def test_a_plugin_that_fails_inside_jno_costs_only_itself(site):
    info = site.folder / "jno_lora_sad-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: jno-lora-sad\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[jno.lora.inside_jno]\nsad = json:sad\n")
    said = site.run("import jno, jno_lora_jno\nassert jno_lora_jno.is_enabled()", start="")
    assert said.count("JnoLoraWarning") == 1 and "jno-lora-sad" in said and "'sad'" in said


def installed(folder, *names):
    """A folder in which distributions of these names are installed, for `importlib.metadata`."""
    for name in names:
        info = folder / f"{name.replace('-', '_')}-0.4.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.4.2\n")
    return folder


OLD, NEW = "jax-neural-operators", "jax-numerical-operators"


@pytest.mark.parametrize(
    ("names", "package", "trouble"),
    [
        ((NEW,), None, "jno-lora hides an editable jNO.*Install both as wheels"),
        ((NEW, OLD), "jno", "are both installed.*Uninstall both, then install"),
        ((NEW,), "src/jno", "hides it wherever.*Install both as wheels"),
        ((NEW,), "jno", ""),
    ],
)
def test_a_bad_installation_is_found_with_its_cure(tmp_path, monkeypatch, names, package, trouble):
    monkeypatch.syspath_prepend(installed(tmp_path, *names))
    if package is not None:
        (tmp_path / package).mkdir(parents=True)
        (tmp_path / package / "__init__.py").touch()
        monkeypatch.syspath_prepend((tmp_path / package).parent)
        package = str(tmp_path / package / "__init__.py")
    found = find_bad_installs([str(tmp_path / "jno" / "lora")], package)
    assert len(found) == bool(trouble) and re.search(trouble, "".join(found), re.DOTALL)
