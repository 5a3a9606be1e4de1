"""jno-lora: adapters (LoRA and its relatives) for Equinox models, as plugins.

    from jno.lora import Net

    net = Net(model)
    net.freeze().lora(rank=8, alpha=16)
    trainable, frozen = net.partition()

The adapters come from plugins, such as the built-in zoo (`pip install "jno-lora[zoo]"`).
"""

import importlib as _importlib
import sys as _sys
from typing import TYPE_CHECKING, Any

from . import _moved, _registry
from ._checkpoint import load_adapters, read_adapters, read_metadata, save_adapters
from ._contract import About, LoRAWrapper, MatrixAdapter, Shared, Statistic
from ._dispatch import apply_lora, plan_lora
from ._errors import CheckpointError, JnoLoraError, SelectionError, WrapperError
from ._merge import disabled, merge_lora, unwrap_lora
from ._net import Net
from ._planning import Spec
from ._registry import Registry, hookimpl, refresh, register, registered
from ._reports import citation, lora_report
from ._sets import extract_adapters, swap_adapters
from ._shared_arrays import resolve
from ._trainability import lora_param_labels, lora_trainable_filter, partial_lora_trainable_filter
from ._version import __version__ as __version__
from .types import *  # noqa: F403

if TYPE_CHECKING:
    # For type checkers. At run time `__getattr__` finds these names.
    from jno_lora_combine import *  # noqa: F403  # pyright: ignore
    from jno_lora_compare import *  # noqa: F403  # pyright: ignore
    from jno_lora_train import (
        allocate as allocate,
        calibrate as calibrate,
        penalty as penalty,
        retain as retain,
    )
    from jno_lora_zoo import adapters as _adapters
    from jno_lora_zoo.adapters import *  # noqa: F403  # pyright: ignore

__all__ = ["Net", "Registry", "hookimpl", "refresh", "register", "registered", "resolve"]
__all__ += ["CheckpointError", "JnoLoraError", "SelectionError", "WrapperError"]
__all__ += ["About", "LoRAWrapper", "MatrixAdapter", "Shared", "Spec", "Statistic"]
__all__ += ["apply_lora", "merge_lora", "plan_lora", "unwrap_lora"]
__all__ += ["disabled", "lora_param_labels", "lora_trainable_filter"]
__all__ += ["partial_lora_trainable_filter"]
__all__ += ["citation", "lora_report"]
__all__ += ["extract_adapters", "load_adapters", "read_adapters", "read_metadata", "save_adapters"]
__all__ += ["swap_adapters"]
if TYPE_CHECKING:
    __all__ += _adapters.__all__


def __getattr__(name: str) -> Any:
    if name == "in_jno":  # `import jno` is enough for `jno.lora.in_jno.enable()`
        return _importlib.import_module("jno.lora.in_jno")
    is_class = name.isalnum() and not name.islower() and not name.isupper()  # "DoRALinear"
    if is_class and name not in _moved.NAMES:
        adapters = _registry.default_registry().zoo_names()
        if not adapters or name in adapters:  # without the zoo, the error names the package
            return _registry.default_registry().zoo_class(name)
    return _moved.moved(__name__, name)


def __dir__() -> list[str]:
    # `help` looks up every listed name, so names of missing plugins are left out.
    special = [name for name in globals() if name.startswith("__")]
    zoo = _registry.default_registry().zoo_names()
    return sorted({*__all__, *special, *zoo, *_moved.installed_names()})


# Must stay last. `jno` has a file only if jNO imports this module.
if getattr(_sys.modules.get("jno"), "__file__", None) is not None:
    _registry.call_inside_jno()
