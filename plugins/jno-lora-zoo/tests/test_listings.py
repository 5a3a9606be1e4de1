"""The adapters that `adapters_for` makes, and their stubs, follow from the zoo's methods."""

import ast
import inspect
import pathlib
import pickle
import pydoc
import runpy
import subprocess
import sys
import tarfile
import zipfile

import pytest

from jno_lora_zoo import METHODS, methods

PLUGINS = pathlib.Path(__file__).parents[2]
stubs_of = runpy.run_path(str(PLUGINS / "jno-lora-zoo/stubs.py"))["stubs_of"]


@pytest.mark.parametrize("column", ["zoo", "foundax", "arrays"])
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
    text = stubs_of(PLUGINS / "jno-lora-zoo")[pathlib.Path(methods.__file__).with_suffix(".pyi")]
    stubs = {node.name: node for node in ast.parse(text).body if isinstance(node, ast.ClassDef)}
    assert sorted(stubs) == sorted(method.__name__ for method in METHODS)
    for method in METHODS:
        (constructor,) = stubs[method.__name__].body
        arguments = [*constructor.args.args, *constructor.args.kwonlyargs]
        expected = list(inspect.signature(method.__init__).parameters)
        assert [argument.arg for argument in arguments] == expected


def test_wheels_and_sdists_hold_the_stubs(tmp_path):
    project = PLUGINS / "jno-lora-arrays"
    command = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-t", "wheel"]
    subprocess.run([*command, "-d", tmp_path], cwd=project, check=True)
    (wheel,), (sdist,) = tmp_path.glob("*.whl"), tmp_path.glob("*.tar.gz")
    stubs = {str(path.relative_to(project)) for path in stubs_of(project)}
    assert {f"src/{name}" for name in zipfile.ZipFile(wheel).namelist()} >= stubs
    with tarfile.open(sdist) as archive:
        assert {name.partition("/")[2] for name in archive.getnames()} >= stubs
