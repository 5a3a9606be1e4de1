"""jno-lora: adapters (LoRA and its relatives) for Equinox models, as plugins.

    from jno.lora import Net

    net = Net(model)
    net.freeze().lora(rank=8, alpha=16)
    trainable, frozen = net.partition()

The adapters come from plugins, such as the built-in zoo (`pip install "jno-lora[zoo]"`), whose
classes can be imported from here: `from jno.lora import DoRALinear`.
"""

import sys as _sys
from typing import TYPE_CHECKING

from ._checkpoint.reading import load_adapters, read_adapters, read_metadata
from ._checkpoint.writing import save_adapters
from ._contract.matrix_adapter import LowRankForm, MatrixAdapter, Term
from ._contract.protocols import ConvLike, LinearLike
from ._contract.shared import Shared
from ._contract.statistics import Statistic
from ._contract.wrapper import About, LoRAWrapper
from ._dispatch import apply_lora, plan_lora
from ._errors import (
    CheckpointError,
    JnoLoraError,
    JnoLoraWarning,
    MissingLibraryError,
    PeftFormatError,
    PluginError,
    SelectionError,
    WrapperError,
)
from ._left_out import LeftOut
from ._merge import disabled, merge_lora, unwrap_lora
from ._net.net import Net
from ._planning.plan import Plan, PlanRow
from ._planning.specs import Spec
from ._registry.hookspecs import hookimpl
from ._registry.inside_jno import call_inside_jno
from ._registry.plugins import PluginRecord, RegisteredWrapper
from ._registry.registry import Registry, default_registry, refresh, register, registered
from ._reports.citation import citation
from ._reports.report import LoraReport, ReportRow, lora_report
from ._sets.set import AdapterSet, LayerForm, LooseAdapter, extract_adapters, swap_adapters
from ._shared_arrays import resolve
from ._showing.tables import Table
from ._trainability import lora_param_labels, lora_trainable_filter, partial_lora_trainable_filter
from ._version import __version__ as __version__

if TYPE_CHECKING:
    # For type checkers. At run time `__getattr__` finds the classes of the zoo.
    from jno_lora_zoo import adapters as _adapters
    from jno_lora_zoo.adapters import *  # noqa: F403  # pyright: ignore

__all__ = ["Net", "apply_lora", "merge_lora", "plan_lora", "unwrap_lora"]
__all__ += ["citation", "disabled", "lora_param_labels", "lora_report", "resolve"]
__all__ += ["lora_trainable_filter", "partial_lora_trainable_filter"]
__all__ += ["extract_adapters", "load_adapters", "read_adapters", "read_metadata", "save_adapters"]
__all__ += ["swap_adapters"]
__all__ += ["About", "LoRAWrapper", "LowRankForm", "MatrixAdapter", "Shared", "Spec"]
__all__ += ["Statistic", "Term"]
__all__ += ["Registry", "hookimpl", "refresh", "register", "registered"]
# Types of results and errors, for annotations and `except`.
__all__ += ["AdapterSet", "LayerForm", "LeftOut", "LooseAdapter", "LoraReport", "Plan", "PlanRow"]
__all__ += ["ConvLike", "LinearLike", "PluginRecord", "RegisteredWrapper", "ReportRow", "Table"]
__all__ += ["CheckpointError", "JnoLoraError", "JnoLoraWarning", "MissingLibraryError"]
__all__ += ["PeftFormatError", "PluginError", "SelectionError", "WrapperError"]
if TYPE_CHECKING:
    __all__ += _adapters.__all__


def __getattr__(name: str) -> type[LoRAWrapper]:
    is_class = name.isalnum() and not name.islower() and not name.isupper()  # "DoRALinear"
    adapters = default_registry().zoo_names() if is_class else ()
    # Without the zoo, the error says what to install.
    if is_class and (name in adapters or not adapters):
        return default_registry().zoo_class(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    special = [name for name in globals() if name.startswith("__")]
    return sorted({*__all__, *special, *default_registry().zoo_names()})


# Must stay last. Without jNO, `jno` is a namespace package, which has no file.
if getattr(_sys.modules.get("jno"), "__file__", None) is not None:
    call_inside_jno()
