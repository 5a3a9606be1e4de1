"""Stubs and listings follow from the zoo's methods, and are up to date."""

import ast
import inspect
import pathlib
import pickle
import pydoc
import subprocess
import sys
import tarfile
import zipfile

import pytest
from tests.pairs import pairwise

import jno.lora
import jno_lora_zoo
from jno.lora import Registry
from jno.lora._commands import installed
from jno_lora_zoo import METHODS

from . import listings

PACKAGES = [f"jno_lora_{column}" for column in listings.COLUMNS]


def test_the_lists_are_up_to_date():
    outdated = [str(path.relative_to(listings.ROOT)) for path in listings.outdated()]
    assert not outdated, f"out of date: {outdated}. python tests/zoo/listings.py --write"


@pytest.mark.parametrize("method", jno_lora_zoo.METHODS, ids=lambda method: method.__name__)
def test_every_method_has_a_page(method):
    page = (listings.ROOT / f"docs/methods/{method.variant}.md").read_text()
    assert f'`wrapper="{method.variant}"`' in page and f"[{method.about.paper}]" in page
    assert f"`{method.__name__}Linear`" in page


def adapters():
    """Methods on kinds of layer, by the module of the adapter and its name."""
    named = {}
    for module in (pytest.importorskip(package).adapters for package in PACKAGES):
        for name in module.__all__:
            # The longest: `VeRASharedLinear` is not an adapter of VeRA.
            methods = [m.__name__ for m in METHODS if name.startswith(m.__name__)]
            method = max(methods, key=len)
            named[method, name.removeprefix(method)] = (module, name)
    return [named[pair] for pair in pairwise(named)]


@pytest.mark.parametrize(("module", "name"), adapters(), ids=lambda item: str(item)[-30:])
def test_an_adapter_is_a_class_as_if_written_by_hand(module, name):
    cls = getattr(module, name)
    assert (cls.__module__, cls.__qualname__) == (module.__name__, name)
    method, kind = cls.__bases__
    assert name == f"{method.__name__}{kind.__name__.removesuffix('Layer')}"
    assert pickle.loads(pickle.dumps(cls)) is cls
    assert inspect.getdoc(cls) == inspect.getdoc(method)
    assert name in pydoc.render_doc(cls)


def classes_in(text):
    return {node.name: node for node in ast.parse(text).body if isinstance(node, ast.ClassDef)}


def exported_by(text):
    (exports,) = (node for node in ast.parse(text).body if ast.unparse(node).startswith("__all__"))
    return ast.literal_eval(exports.value)


@pytest.mark.parametrize("column", listings.COLUMNS)
def test_a_stub_has_every_adapter_with_its_bases(column):
    module = pytest.importorskip(f"jno_lora_{column}").adapters
    text = listings.stubs_of(column)[pathlib.Path(module.__file__).with_suffix(".pyi")]
    stubs = {name: [base.id for base in stub.bases] for name, stub in classes_in(text).items()}
    assert stubs == {
        name: [base.__name__ for base in getattr(module, name).__bases__] for name in module.__all__
    }
    assert sorted(exported_by(text)) == sorted(module.__all__)


def test_the_stub_of_the_methods_has_their_constructors():
    module = jno_lora_zoo.methods
    text = listings.stubs_of("zoo")[pathlib.Path(module.__file__).with_suffix(".pyi")]
    assert sorted(exported_by(text)) == sorted(module.__all__)
    stubs = classes_in(text)
    assert sorted(stubs) == sorted(method.__name__ for method in METHODS)
    for method in METHODS:
        (constructor,) = stubs[method.__name__].body
        positional = [argument.arg for argument in constructor.args.args]
        options = [argument.arg for argument in constructor.args.kwonlyargs]
        assert [*positional, *options] == list(inspect.signature(method.__init__).parameters)


@pytest.mark.parametrize("column", ["zoo", "arrays"])
def test_wheels_and_sdists_hold_the_stubs(column, tmp_path):
    project = listings.ROOT / f"plugins/jno-lora-{column}"
    command = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-t", "wheel"]
    subprocess.run([*command, "-d", tmp_path], cwd=project, check=True)
    (wheel,), (sdist,) = tmp_path.glob("*.whl"), tmp_path.glob("*.tar.gz")
    stubs = {str(path.relative_to(project)) for path in listings.stubs_of(column)}
    assert {f"src/{name}" for name in zipfile.ZipFile(wheel).namelist()} >= stubs
    with tarfile.open(sdist) as archive:
        assert {name.partition("/")[2] for name in archive.getnames()} >= stubs


def test_type_checkers_find_the_zoo_in_the_core():
    source = pathlib.Path(jno.lora.__file__).read_text()
    assert "    from jno_lora_zoo.adapters import *" in source


def test_the_methods_are_listed_by_family_within_100_columns():
    found = installed.adapters(Registry().records())
    lines = str(installed.methods_as_table(found)).splitlines()
    assert max(map(len, lines)) <= 100
    families = [line.strip() for line in lines if line.endswith(":")]
    assert {f"{method.about.family}:" for method in METHODS} <= {*families}
    assert {method.about.family for method in METHODS} <= {*jno_lora_zoo.FAMILIES}
    assert "others:" not in families
    assert all(any(f" {method.variant} " in line for line in lines) for method in METHODS)
