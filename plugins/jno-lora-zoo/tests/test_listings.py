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

import listings
import pytest

from jno_lora_zoo import METHODS, methods


def test_the_lists_are_up_to_date():
    outdated = [str(path.relative_to(listings.ROOT)) for path in listings.outdated()]
    assert not outdated, f"out of date: {outdated}. make update"


@pytest.mark.parametrize("column", listings.COLUMNS)
def test_an_adapter_is_a_class_as_if_written_by_hand(column):
    module = pytest.importorskip(f"jno_lora_{column}").adapters
    for name in (name for name in module.__all__ if name.startswith(("LoRA", "VeRAShared"))):
        cls = getattr(module, name)
        assert (cls.__module__, cls.__qualname__) == (module.__name__, name)
        method, kind = cls.__bases__
        assert name == f"{method.__name__}{kind.__name__.removesuffix('Layer')}"
        assert pickle.loads(pickle.dumps(cls)) is cls
        assert inspect.getdoc(cls) == inspect.getdoc(method)
        assert name in pydoc.render_doc(cls)


def test_the_stubs_have_the_constructors_of_the_methods():
    text = listings.stubs_of("zoo")[pathlib.Path(methods.__file__).with_suffix(".pyi")]
    stubs = {node.name: node for node in ast.parse(text).body if isinstance(node, ast.ClassDef)}
    assert sorted(stubs) == sorted(method.__name__ for method in METHODS)
    for method in METHODS:
        (constructor,) = stubs[method.__name__].body
        arguments = [*constructor.args.args, *constructor.args.kwonlyargs]
        expected = list(inspect.signature(method.__init__).parameters)
        assert [argument.arg for argument in arguments] == expected


def test_wheels_and_sdists_hold_the_stubs(tmp_path):
    column = "arrays"
    project = listings.ROOT / f"plugins/jno-lora-{column}"
    command = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-t", "wheel"]
    subprocess.run([*command, "-d", tmp_path], cwd=project, check=True)
    (wheel,), (sdist,) = tmp_path.glob("*.whl"), tmp_path.glob("*.tar.gz")
    stubs = {str(path.relative_to(project)) for path in listings.stubs_of(column)}
    assert {f"src/{name}" for name in zipfile.ZipFile(wheel).namelist()} >= stubs
    with tarfile.open(sdist) as archive:
        assert {name.partition("/")[2] for name in archive.getnames()} >= stubs
