"""Writes the stubs of the adapters before a build. An sdist holds the stubs alone."""

import pathlib
import runpy
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_GENERATOR = pathlib.Path(__file__).parents[1] / "jno-lora-zoo/stubs.py"


class StubsHook(BuildHookInterface):
    """Runs the generator where the repository is there."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Before a wheel, an sdist or an editable install."""
        if _GENERATOR.exists():
            runpy.run_path(str(_GENERATOR))["write"](pathlib.Path(self.root))
