"""Stubs and listings follow from the zoo's methods, and are up to date."""

import inspect
import pathlib
import pickle
import pydoc

import jax
import pytest

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


def test_the_methods_are_listed_by_family_within_100_columns():
    found = installed.adapters(Registry().records())
    lines = str(installed.methods_as_table(found)).splitlines()
    assert max(map(len, lines)) <= 100
    families = [line.strip() for line in lines if line.endswith(":")]
    assert {f"{method.family}:" for method in METHODS} <= {*families}
    assert {method.family for method in METHODS} <= {*jno_lora_zoo.FAMILIES}
    assert "others:" not in families
    assert all(any(f" {method.variant} " in line for line in lines) for method in METHODS)


def test_an_unknown_variant_is_answered_with_the_families():
    with pytest.raises(jno.lora.SelectionError, match=r"rotation: .*oft, oft-in") as caught:
        jno.lora.apply_lora({}, rank=2, wrappers="off", key=jax.random.key(0))
    # Not the second name of the same method.
    assert "oft-in-norm" not in str(caught.value).partition("by family:")[2]
