"""Writes the stubs of the adapters before a build. An sdist holds the stubs alone."""

import pathlib
import runpy
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class StubsHook(BuildHookInterface):
    """Before a wheel, an sdist or an editable install, where the repository is there."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: D102
        root = pathlib.Path(self.root)
        if (generator := root.parent / "jno-lora-zoo/stubs.py").exists():
            runpy.run_path(str(generator))["write"](root)
