"""The types of results, for annotations: plans, reports, records of plugins, parts of sets."""

from typing import TYPE_CHECKING, Any

from ._errors import imported_for
from ._planning import Plan, PlanRow
from ._registry import PluginRecord, RegisteredWrapper
from ._reports import AdapterEffect, AdapterEffects, LoraReport, ReportRow
from ._sets import LayerForm, LooseAdapter, UpdateReport, UpdateRow
from ._showing import Table

if TYPE_CHECKING:
    from jno_lora_compare import Comparison as Comparison, ComparisonRow as ComparisonRow

__all__ = [
    "AdapterEffect",
    "AdapterEffects",
    "LayerForm",
    "LooseAdapter",
    "LoraReport",
    "Plan",
    "PlanRow",
    "PluginRecord",
    "RegisteredWrapper",
    "ReportRow",
    "Table",
    "UpdateReport",
    "UpdateRow",
]


def __getattr__(name: str) -> Any:
    if name in ("Comparison", "ComparisonRow"):
        with imported_for(f"jno.lora.types.{name}", "compare", "jno_lora_compare"):
            import jno_lora_compare
        return getattr(jno_lora_compare, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
