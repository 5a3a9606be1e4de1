"""Stubs, reserved names and listings follow from the zoo's methods, and are up to date."""

import inspect
import pathlib
import pickle
import pydoc

import pytest

import jno.lora
import jno_lora_zoo

from . import listings

PACKAGES = [f"jno_lora_{column}" for column in listings.COLUMNS]


def test_the_lists_are_up_to_date():
    outdated = [str(path.relative_to(listings.ROOT)) for path in listings.outdated()]
    assert not outdated, f"out of date: {outdated}. python tests/zoo/listings.py --write"


@pytest.mark.parametrize("method", jno_lora_zoo.METHODS, ids=lambda method: method.__name__)
def test_every_method_has_a_page(method):
    page = (listings.ROOT / f"docs/methods/{method.variant}.md").read_text()
    assert f'`wrapper="{method.variant}"`' in page and f"[{method.paper}]" in page
    assert f"`{method.__name__}Linear`" in page


def adapters():
    modules = [pytest.importorskip(package).adapters for package in PACKAGES]
    return [(module, name) for module in modules for name in module.__all__]


@pytest.mark.parametrize(("module", "name"), adapters(), ids=lambda item: str(item)[-30:])
def test_an_adapter_is_a_class_as_if_written_by_hand(module, name):
    cls = getattr(module, name)
    assert (cls.__module__, cls.__qualname__) == (module.__name__, name)
    method, kind = cls.__bases__
    assert name == f"{method.__name__}{kind.__name__.removesuffix('Layer')}"
    assert pickle.loads(pickle.dumps(cls)) is cls
    assert inspect.getdoc(cls) == inspect.getdoc(method)
    assert name in pydoc.render_doc(cls)


def test_type_checkers_find_the_zoo_in_the_core():
    source = pathlib.Path(jno.lora.__file__).read_text()
    assert "    from jno_lora_zoo.adapters import *" in source
