"""jno-lora: adapters (LoRA and its relatives) for Equinox models, as plugins.

    from jno.lora import Net

    net = Net(model)
    net.freeze().lora(rank=8, alpha=16)
    trainable, frozen = net.partition()

The adapters themselves come from plugins; the built-in zoo is one (`pip install "jno-lora[zoo]"`).
"""

from importlib import metadata as _metadata
from typing import TYPE_CHECKING, Any

from ._checkpoint import load_adapters, read_adapters, save_adapters
from ._comparing import Comparison, ComparisonRow, compare
from ._contract import ConvLike, LinearLike, LoRAWrapper
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
from ._merge import merge_lora, unwrap_lora
from ._net import Net
from ._planning import Plan, PlanRow
from ._registry import (
    ZOO_DISTRIBUTION as _ZOO_DISTRIBUTION,
    ZOO_NAMES as _ZOO_NAMES,
    PluginRecord,
    RegisteredWrapper,
    Registry,
    default_registry as _default_registry,
    hookimpl,
    refresh,
    register,
    registered,
)
from ._reports import (
    AdapterEffect,
    AdapterEffects,
    LoraReport,
    ReportRow,
    adapter_effects,
    citation,
    lora_report,
    plot_adapters,
)
from ._sets import (
    AdapterSet,
    LayerForm,
    LooseAdapter,
    UpdateReport,
    UpdateRow,
    combine,
    extract_adapters,
    scale_adapters,
    stack_adapters,
    swap_adapters,
    to_lora,
)
from ._trainability import lora_trainable_filter, partial_lora_trainable_filter
from ._version import __version__ as __version__

if TYPE_CHECKING:
    # The `as` form re-exports them to type checkers; at run time `__getattr__` finds them.
    from jno_lora_zoo import (
        DoRAConv as DoRAConv,
        DoRAConvTranspose as DoRAConvTranspose,
        DoRAInNorm as DoRAInNorm,
        DoRALinear as DoRALinear,
        IA3Conv as IA3Conv,
        IA3ConvTranspose as IA3ConvTranspose,
        IA3InNorm as IA3InNorm,
        IA3Linear as IA3Linear,
        LoKrConv as LoKrConv,
        LoKrConvTranspose as LoKrConvTranspose,
        LoKrInNorm as LoKrInNorm,
        LoKrLinear as LoKrLinear,
        LoRAConv as LoRAConv,
        LoRAConvTranspose as LoRAConvTranspose,
        LoRAFAConv as LoRAFAConv,
        LoRAFAConvTranspose as LoRAFAConvTranspose,
        LoRAFAInNorm as LoRAFAInNorm,
        LoRAFALinear as LoRAFALinear,
        LoRAInNorm as LoRAInNorm,
        LoRALinear as LoRALinear,
        LoRAXSConv as LoRAXSConv,
        LoRAXSConvTranspose as LoRAXSConvTranspose,
        LoRAXSInNorm as LoRAXSInNorm,
        LoRAXSLinear as LoRAXSLinear,
        MiLoRAConv as MiLoRAConv,
        MiLoRAConvTranspose as MiLoRAConvTranspose,
        MiLoRAInNorm as MiLoRAInNorm,
        MiLoRALinear as MiLoRALinear,
        OFTConv as OFTConv,
        OFTConvTranspose as OFTConvTranspose,
        OFTInNorm as OFTInNorm,
        OFTLinear as OFTLinear,
        PiSSAConv as PiSSAConv,
        PiSSAConvTranspose as PiSSAConvTranspose,
        PiSSAInNorm as PiSSAInNorm,
        PiSSALinear as PiSSALinear,
        VeRAConv as VeRAConv,
        VeRAConvTranspose as VeRAConvTranspose,
        VeRAInNorm as VeRAInNorm,
        VeRALinear as VeRALinear,
        rsLoRAConv as rsLoRAConv,
        rsLoRAConvTranspose as rsLoRAConvTranspose,
        rsLoRAInNorm as rsLoRAInNorm,
        rsLoRALinear as rsLoRALinear,
    )

__all__ = [
    "AdapterEffect",
    "AdapterEffects",
    "AdapterSet",
    "CheckpointError",
    "Comparison",
    "ComparisonRow",
    "ConvLike",
    "JnoLoraError",
    "JnoLoraWarning",
    "LayerForm",
    "LinearLike",
    "LoRAWrapper",
    "LooseAdapter",
    "LoraReport",
    "MissingLibraryError",
    "Net",
    "PeftFormatError",
    "Plan",
    "PlanRow",
    "PluginError",
    "PluginRecord",
    "RegisteredWrapper",
    "Registry",
    "ReportRow",
    "SelectionError",
    "UpdateReport",
    "UpdateRow",
    "WrapperError",
    "adapter_effects",
    "apply_lora",
    "citation",
    "combine",
    "compare",
    "extract_adapters",
    "hookimpl",
    "load_adapters",
    "lora_report",
    "lora_trainable_filter",
    "merge_lora",
    "partial_lora_trainable_filter",
    "plan_lora",
    "plot_adapters",
    "read_adapters",
    "refresh",
    "register",
    "registered",
    "save_adapters",
    "scale_adapters",
    "stack_adapters",
    "swap_adapters",
    "to_lora",
    "unwrap_lora",
]


def __getattr__(name: str) -> Any:
    if name in _ZOO_NAMES:
        return _default_registry().zoo_class(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _is_installed(distribution: str) -> bool:
    return any(_metadata.distributions(name=distribution))


def __dir__() -> list[str]:
    own = (name for name in globals() if name.startswith("__"))
    # Only what can be had: `help` asks for everything that is listed. Nothing is discovered for it.
    zoo = _ZOO_NAMES if _is_installed(_ZOO_DISTRIBUTION) else ()
    return sorted([*own, *__all__, *zoo])


# Last, since it stands in for adapters of jNO, where that is installed, with what is above.
from . import in_jno as in_jno  # noqa: E402

in_jno._enable_at_import()
