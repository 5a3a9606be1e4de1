"""jno-lora: adapters (LoRA and its relatives) for Equinox models, as plugins.

    from jno.lora import Net

    net = Net(model)
    net.freeze().lora(rank=8, alpha=16)
    trainable, frozen = net.partition()

The adapters themselves come from plugins; the built-in zoo is one (`pip install "jno-lora[zoo]"`).
"""

from importlib import metadata as _metadata
from typing import TYPE_CHECKING, Any

from . import types as _types
from ._calibration import allocate, calibrate
from ._checkpoint import load_adapters, read_adapters, save_adapters
from ._contract import (
    ConvLike as ConvLike,
    LinearLike as LinearLike,
    LoRAWrapper,
    Shared,
    Statistic,
)
from ._dispatch import apply_lora, plan_lora
from ._errors import (
    CheckpointError,
    JnoLoraError,
    JnoLoraWarning as JnoLoraWarning,
    MissingLibraryError as MissingLibraryError,
    PeftFormatError as PeftFormatError,
    PluginError as PluginError,
    SelectionError,
    WrapperError,
    imported_for as _imported_for,
)
from ._merge import merge_lora, unwrap_lora
from ._net import Net
from ._penalty import penalty
from ._planning import Spec
from ._registry import (
    ZOO_DISTRIBUTION as _ZOO_DISTRIBUTION,
    ZOO_NAMES as _ZOO_NAMES,
    Registry,
    default_registry as _default_registry,
    hookimpl,
    refresh,
    register,
    registered,
)
from ._reports import adapter_effects, citation, lora_report, plot_adapters
from ._sets import (
    AdapterSet as AdapterSet,
    combine,
    combine_with_report as combine_with_report,
    extract_adapters,
    scale_adapters,
    shrink,
    stack_adapters,
    swap_adapters,
    take_adapters,
    to_lora,
)
from ._shared_arrays import resolve
from ._trainability import lora_param_labels, lora_trainable_filter, partial_lora_trainable_filter
from ._version import __version__ as __version__

if TYPE_CHECKING:
    # For type checkers. At run time `__getattr__` finds these names.
    from jno_lora_compare import compare as compare
    from jno_lora_zoo import adapters as _adapters
    from jno_lora_zoo.adapters import *  # noqa: F403  # pyright: ignore

    from .types import Comparison as Comparison, ComparisonRow as ComparisonRow

__all__ = [
    "CheckpointError",
    "JnoLoraError",
    "LoRAWrapper",
    "Net",
    "Registry",
    "SelectionError",
    "Shared",
    "Spec",
    "Statistic",
    "WrapperError",
    "adapter_effects",
    "allocate",
    "apply_lora",
    "calibrate",
    "citation",
    "combine",
    "extract_adapters",
    "hookimpl",
    "load_adapters",
    "lora_param_labels",
    "lora_report",
    "lora_trainable_filter",
    "merge_lora",
    "partial_lora_trainable_filter",
    "penalty",
    "plan_lora",
    "plot_adapters",
    "read_adapters",
    "refresh",
    "register",
    "registered",
    "resolve",
    "save_adapters",
    "scale_adapters",
    "shrink",
    "stack_adapters",
    "swap_adapters",
    "take_adapters",
    "to_lora",
    "unwrap_lora",
]
if TYPE_CHECKING:
    __all__ += _adapters.__all__


_COMPARING = ("Comparison", "ComparisonRow", "compare")


def __getattr__(name: str) -> Any:
    if name in _ZOO_NAMES:
        return _default_registry().zoo_class(name)
    if name in _COMPARING:
        with _imported_for(f"jno.lora.{name}", "compare", "jno_lora_compare"):
            import jno_lora_compare
        return getattr(jno_lora_compare, name)
    if name in _types.__all__:  # result types were here before they got a module of their own
        return getattr(_types, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    names = {*__all__, *(name for name in globals() if name.startswith("__"))}
    # `help` asks for everything that is listed, so names of missing plugins are left out.
    for distribution, others in ((_ZOO_DISTRIBUTION, _ZOO_NAMES), ("jno-lora-compare", _COMPARING)):
        if any(_metadata.distributions(name=distribution)):
            names.update(others)
    return sorted(names)


# Last: beside an installed jNO, it lets jNO use the adapters of this package.
from . import in_jno as _in_jno  # noqa: E402

_in_jno._enable_at_import()
