"""Arithmetic of adapters: combine, scale, stack and convert sets, and measure their updates."""

from ._combine import combine, combine_with_report
from ._effects import AdapterEffect, AdapterEffects, adapter_effects, plot_adapters
from ._extract_lora import extract_lora
from ._intruders import IntruderReport, IntruderRow, reduce_intruders, report_intruders
from ._pictures import new_picture
from ._products import UpdateReport, UpdateRow, scale_adapters
from ._stacking import stack_adapters, take_adapters
from ._sum import AdapterSum, split_adapters, sum_adapters
from ._to_lora import shrink, to_lora

__all__ = [
    "AdapterEffect",
    "AdapterEffects",
    "AdapterSum",
    "IntruderReport",
    "IntruderRow",
    "UpdateReport",
    "UpdateRow",
    "adapter_effects",
    "combine",
    "combine_with_report",
    "extract_lora",
    "new_picture",
    "plot_adapters",
    "reduce_intruders",
    "report_intruders",
    "scale_adapters",
    "shrink",
    "split_adapters",
    "stack_adapters",
    "sum_adapters",
    "take_adapters",
    "to_lora",
]
