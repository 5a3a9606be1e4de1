"""jno-lora: adapters (LoRA and its relatives) for Equinox models, as plugins.

    from jno.lora import Net

    net = Net(model)
    net.freeze().lora(rank=8, alpha=16)
    trainable, frozen = net.partition()

The adapters themselves come from plugins; the built-in zoo is one (`pip install "jno-lora[zoo]"`).
"""

from typing import TYPE_CHECKING, Any

from ._contract import ConvLike, LinearLike, LoRAWrapper
from ._dispatch import apply_lora, plan_lora
from ._errors import (
    JnoLoraError,
    JnoLoraWarning,
    PluginError,
    SelectionError,
    WrapperError,
)
from ._hookspecs import hookimpl
from ._merge import merge_lora, unwrap_lora
from ._net import Net
from ._plan import Plan, PlanRow
from ._registry import PluginRecord, RegisteredWrapper, Registry, refresh, register, registered
from ._report import LoraReport, ReportRow, lora_report
from ._trainability import lora_trainable_filter, partial_lora_trainable_filter
from ._zoo_names import ZOO_NAMES as _ZOO_NAMES

if TYPE_CHECKING:
    # The `as` form re-exports them to type checkers; at run time `__getattr__` finds them.
    from jno_lora_zoo import (
        DoRAConv as DoRAConv,
        DoRALinear as DoRALinear,
        IA3Conv as IA3Conv,
        IA3Linear as IA3Linear,
        LoKrConv as LoKrConv,
        LoKrLinear as LoKrLinear,
        LoRAConv as LoRAConv,
        LoRAFAConv as LoRAFAConv,
        LoRAFALinear as LoRAFALinear,
        LoRALinear as LoRALinear,
        LoRAXSConv as LoRAXSConv,
        LoRAXSLinear as LoRAXSLinear,
        MiLoRAConv as MiLoRAConv,
        MiLoRALinear as MiLoRALinear,
        OFTConv as OFTConv,
        OFTLinear as OFTLinear,
        PiSSAConv as PiSSAConv,
        PiSSALinear as PiSSALinear,
        VeRAConv as VeRAConv,
        VeRALinear as VeRALinear,
        rsLoRAConv as rsLoRAConv,
        rsLoRALinear as rsLoRALinear,
    )

__all__ = [
    "ConvLike",
    "JnoLoraError",
    "JnoLoraWarning",
    "LinearLike",
    "LoRAWrapper",
    "LoraReport",
    "Net",
    "Plan",
    "PlanRow",
    "PluginError",
    "PluginRecord",
    "RegisteredWrapper",
    "Registry",
    "ReportRow",
    "SelectionError",
    "WrapperError",
    "apply_lora",
    "hookimpl",
    "lora_report",
    "lora_trainable_filter",
    "merge_lora",
    "partial_lora_trainable_filter",
    "plan_lora",
    "refresh",
    "register",
    "registered",
    "unwrap_lora",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in _ZOO_NAMES:
        from ._registry import default_registry

        return default_registry().zoo_class(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_ZOO_NAMES])
