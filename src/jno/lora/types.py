"""Types for annotations: of results, of rarer errors, and of layers by their attributes."""

from typing import TYPE_CHECKING, Any

from ._contract import ConvLike, LinearLike, Term
from ._errors import JnoLoraWarning, MissingLibraryError, PeftFormatError, PluginError
from ._moved import moved
from ._planning import Plan, PlanRow
from ._registry import PluginRecord, RegisteredWrapper
from ._reports import LoraReport, ReportRow
from ._sets import AdapterSet, AdapterSum, LayerForm, LooseAdapter
from ._showing import Table
from ._tree import LeftOut

if TYPE_CHECKING:
    from jno_lora_combine import (
        AdapterEffect as AdapterEffect,
        AdapterEffects as AdapterEffects,
        UpdateReport as UpdateReport,
        UpdateRow as UpdateRow,
    )
    from jno_lora_compare import Comparison as Comparison, ComparisonRow as ComparisonRow
    from jno_lora_train import (
        Allocation as Allocation,
        AllocationRow as AllocationRow,
        Statistics as Statistics,
    )
    from jno_lora_zoo import Triplets as Triplets

__all__ = [
    "AdapterSet",
    "AdapterSum",
    "ConvLike",
    "JnoLoraWarning",
    "LayerForm",
    "LeftOut",
    "LinearLike",
    "LooseAdapter",
    "LoraReport",
    "MissingLibraryError",
    "PeftFormatError",
    "Plan",
    "PlanRow",
    "PluginError",
    "PluginRecord",
    "RegisteredWrapper",
    "ReportRow",
    "Table",
    "Term",
]


def __getattr__(name: str) -> Any:
    return moved(__name__, name)
