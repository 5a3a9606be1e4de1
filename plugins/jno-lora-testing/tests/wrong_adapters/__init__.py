"""Wrong adapters as data: each has one fault, and names the check that must notice the fault.

`PYTHONPATH=plugins/jno-lora-testing/tests python -m wrong_adapters` prints which share the
kit notices.
"""

import importlib
import pathlib

from ._rows import TABLE as TABLE

for _path in sorted(pathlib.Path(__file__).parent.glob("[a-z]*.py")):
    importlib.import_module(f".{_path.stem}", __package__)
