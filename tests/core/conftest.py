"""Fixtures of the core's tests: models, registries of their own, and installed fake plugins."""

import itertools
import os
import sys
import textwrap
from pathlib import Path
from typing import Any

import importlib_metadata

# Imported later by the core, when `site` has taken the folder away where they are installed.
import packaging.requirements  # noqa: F401
import pytest
import rich.console
import rich.table  # noqa: F401
import safetensors.numpy  # noqa: F401

import jno.lora._registry.registry as registry_module
from jno.lora import Registry
from jno.lora._registry.plugins import first_party

from .toys import Block, Model

first_party()  # read from the metadata once, for the same reason

_numbers = itertools.count()

# The start of the fake plugins' modules: one function that makes usable adapter classes.
PREAMBLE = """
import equinox as eqx
import jno.lora
from jno.lora import LoRAWrapper, MatrixAdapter, hookimpl

def adapter(name, variant=None, auto=False, layer=eqx.nn.Linear, module=__name__):
    def __init__(self, base, rank, alpha, *, key):
        self.base, self.rank, self.alpha, self.delta = base, rank, alpha, 0 * base.weight
    def merge(self):
        return eqx.tree_at(lambda l: l.weight, self.base, self.base.weight + self.delta)
    body = dict(
        __module__=module,
        __qualname__=name,
        __annotations__=dict(base=eqx.Module, delta=object, rank=int, alpha=float),
        adapter_fields=("delta",),
        rank=eqx.field(static=True),
        alpha=eqx.field(static=True),
        variant=variant,
        auto=auto,
        applies_to=classmethod(lambda cls, leaf: isinstance(leaf, layer)),
        __init__=__init__,
        __call__=lambda self, x: self.merge()(x),
        merge=merge,
    )
    return type(LoRAWrapper)(name, (LoRAWrapper,), body)
"""


@pytest.fixture
def model(getkey) -> Model:
    """A small model with an embedding, three linear layers and a scalar."""
    return Model(getkey())


@pytest.fixture
def blocks(getkey) -> dict[str, list[Block]]:
    """A model of two containers."""
    return {"blocks": [Block(2, key=getkey()), Block(2, key=getkey())]}


@pytest.fixture
def registry(monkeypatch) -> Registry:
    """An empty registry without discovery, used by every function during the test."""
    fresh = Registry(discover=False)
    monkeypatch.setattr(registry_module, "_DEFAULT", fresh)
    return fresh


class Site:
    """A place to install fake distributions; no other plugin can be found."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch):
        self.root = root
        self.monkeypatch = monkeypatch

    def install(
        self,
        distribution: str,
        code: str,
        *,
        entry: str = "main",
        version: str = "1.0",
        entries: dict[str, str] | None = None,
        group: str = "jno.lora",
        requires: tuple[str, ...] = (),
    ) -> str:
        """Write a distribution whose plugin module holds `code`, and return that module's name.

        `entries`: further entry points, by name the code of a module. `group`: the group of the
        entry points.
        """
        where = self.root / f"{distribution}-{next(_numbers)}"
        info = where / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
            + "".join(f"Requires-Dist: {requirement}\n" for requirement in requires)
        )
        modules = {}
        for name, source in {entry: code, **(entries or {})}.items():
            # By the name of this module, of which the tests of a plugin have a copy.
            modules[name] = f"fake_{__name__.replace('.', '_')}_{next(_numbers)}"
            text = PREAMBLE + textwrap.dedent(source)
            (where / f"{modules[name]}.py").write_text(text)
        lines = [f"{name} = {module}" for name, module in modules.items()]
        (info / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines, ""]))
        self.monkeypatch.syspath_prepend(where)
        return modules[entry]

    def point_at(self, distribution: str, value: str) -> None:
        """Make the entry point of an installed distribution name something else."""
        name = distribution.replace("-", "_")
        (file,) = self.root.glob(f"{distribution}-*/{name}-*.dist-info/entry_points.txt")
        file.write_text(f"[jno.lora]\nmain = {value}\n")

    def install_zoo(self) -> str:
        """A fake zoo with the two defaults and a third name."""
        code = """
            Linear = adapter("LoRALinear", variant="lora", auto=True)
            Conv = adapter("LoRAConv", variant="lora", auto=True, layer=eqx.nn.Conv)
            DoRA = adapter("DoRALinear", variant="dora", auto=True)

            jno_lora_defaults = ("LoRALinear", "LoRAConv")

            @hookimpl
            def jno_lora_wrappers():
                return [Linear, Conv, DoRA]
        """
        return self.install("jno-lora-zoo", code)

    def plugin(self, distribution: str, *adapters: str, **options: Any) -> str:
        """Install a plugin that provides adapters: `'"Name", variant="v"'` for each."""
        made = "".join(f"adapter({arguments})," for arguments in adapters)
        code = f"CLASSES = [{made}]\n@hookimpl\ndef jno_lora_wrappers():\n    return CLASSES\n"
        return self.install(distribution, code, **options)


@pytest.fixture
def site(tmp_path, monkeypatch) -> Site:
    """A path without plugins, on which the test installs some, and a new default registry."""

    def holds_plugins(entry: str) -> bool:
        return any(
            dist.entry_points.select(group="jno.lora")
            for dist in importlib_metadata.distributions(path=[entry or os.getcwd()])
        )

    monkeypatch.syspath_prepend(tmp_path)  # saves the path, to be restored after the test
    sys.path[:] = [entry for entry in sys.path if not holds_plugins(entry)]
    monkeypatch.setattr(registry_module, "_DEFAULT", Registry())
    return Site(tmp_path, monkeypatch)
