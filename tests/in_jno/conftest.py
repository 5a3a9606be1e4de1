"""What these tests have in common. Those on the real jNO need wheels: `make test-jno`."""

import importlib.util
import os

# `jno` has a file only where jNO is installed beside jno-lora.
HAS_JNO = os.environ.get("JNO_LORA_TEST_JNO") == "1"

REAL = [
    "test_training.py",
    "test_controls.py",
    "test_saving.py",
    "test_installs.py",
    "test_page.py",
]
collect_ignore = [] if HAS_JNO else REAL

if HAS_JNO and not getattr(importlib.util.find_spec("jno"), "has_location", False):
    raise ImportError("JNO_LORA_TEST_JNO=1 needs jNO and jno-lora, both as wheels: make test-jno")
