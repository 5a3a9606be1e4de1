"""The common parts of these tests: a small jNO, and which tests need the real one."""

import importlib.util
import os
import pathlib
import subprocess
import sys
import textwrap

import pytest

import jno.lora

OURS = pathlib.Path(jno.lora.__path__[0])

# `make test-jno` has jNO installed beside jno-lora, both as wheels.
HAS_JNO = os.environ.get("JNO_LORA_TEST_JNO") == "1"
REAL = [f"test_{name}.py" for name in ("training", "controls", "saving", "installs", "page")]
collect_ignore = ["test_standing_in.py"] if HAS_JNO else REAL

if HAS_JNO and not getattr(importlib.util.find_spec("jno"), "has_location", False):
    raise ImportError("JNO_LORA_TEST_JNO=1 needs jNO and jno-lora, both as wheels: make test-jno")

# The modules of jNO that jno.lora knows, in the order in which jNO imports them.
FILES = {
    "__init__.py": """
        from . import lora
        from .core import core
        from .trace import Model
        """,
    "architectures/__init__.py": "",
    "architectures/lora.py": """
        class LoRAWrapper:
            pass
        class DoRALinear(LoRAWrapper):
            pass
        def _normalize_wrappers(wrapper):
            return (wrapper,)
        def apply_lora(model, rank=0, alpha=1.0, *, key, target=None, specs=None, wrappers=None,
                       param_mask=None):
            return "theirs"
        def merge_lora(model):
            return "theirs"
        def lora_trainable_filter(model):
            return "theirs"
        def partial_lora_trainable_filter(model):
            return "theirs"
        """,
    "core.py": """
        from .architectures.lora import apply_lora as _apply_lora, merge_lora as _merge_lora
        class core:
            def solve(self, net, key):
                adapted = _apply_lora(net.module, key=key, specs=net._lora_config, param_mask=None)
                net.adapted, net.module = adapted, _merge_lora(adapted)
                return net
        """,
    "trace.py": """
        from .architectures.lora import LoRAWrapper, _normalize_wrappers
        class Model:
            def __init__(self, module):
                self.module, self._lora_config = module, None
                self._trainable_param_mask = None
            def freeze(self):
                self._trainable_param_mask = None
                return self
            def lora(self, rank=4, alpha=1.0, *, target=None, wrapper=None, specs=None):
                if specs is None:
                    specs = [dict(target=target, rank=rank, alpha=alpha, wrapper=wrapper)]
                self._lora_config = [
                    {**{k: s[k] for k in ("target", "rank", "alpha")},
                     "wrappers": _normalize_wrappers(s["wrapper"])} for s in specs
                ]
                return self
            def tune(self, *, freeze=None, lora=None):
                return self
        class ModelCall:
            def __init__(self, model):
                self.model = model
            def lora(self, rank=4, alpha=1.0, *, target=None, wrapper=None, specs=None):
                self.model.lora(rank, alpha, target=target, wrapper=wrapper, specs=specs)
                return self
        """,
    "late.py": "from .architectures.lora import apply_lora",
}

# The start of every program.
START = """
import warnings
import equinox as eqx
import jax
from jno.lora import JnoLoraError, JnoLoraWarning, SelectionError
model = eqx.nn.MLP(3, 3, 4, 1, key=jax.random.key(0))
def raises(error, match, call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except error as err:
        assert match in str(err), err
    else:
        raise AssertionError("nothing was raised")
"""


class Site:
    """A package `jno` that is built like jNO, and programs that run beside it."""

    def __init__(self, folder):
        self.folder, self.package = folder, folder / "jno"
        for name, text in FILES.items():
            path = self.package / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text))
        (self.package / "lora").symlink_to(OURS)

    def change(self, name, old, new):
        text = (self.package / name).read_text()
        assert old in text
        (self.package / name).write_text(text.replace(old, new))

    def run(self, program, *, start=START, options=(), **environment):
        done = subprocess.run(
            [sys.executable, *options, "-c", textwrap.dedent(start) + textwrap.dedent(program)],
            capture_output=True,
            text=True,
            env={"PYTHONPATH": str(self.folder), "JAX_PLATFORMS": "cpu", **environment},
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path)
