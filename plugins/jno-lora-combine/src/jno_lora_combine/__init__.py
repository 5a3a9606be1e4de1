"""Arithmetic of adapters: combine, scale, stack and convert sets, and measure their updates."""

from ._combine import combine, combine_with_report
from ._effects import AdapterEffect, AdapterEffects, adapter_effects, plot_adapters
from ._extract_lora import extract_lora
from ._intruders import IntruderReport, IntruderRow, reduce_intruders, report_intruders
from ._pictures import new_picture
from ._report import UpdateReport, UpdateRow
from ._scaling import scale_adapters
from ._stacking import stack_adapters, take_adapters
from ._sum import AdapterSum, split_adapters, sum_adapters
from ._to_lora import shrink, to_lora

__all__ = ["UpdateReport", "UpdateRow", "combine", "combine_with_report", "scale_adapters"]
__all__ += ["AdapterSum", "split_adapters", "sum_adapters"]
__all__ += ["extract_lora", "shrink", "to_lora"]
__all__ += ["stack_adapters", "take_adapters"]
__all__ += ["AdapterEffect", "AdapterEffects", "adapter_effects", "new_picture", "plot_adapters"]
__all__ += ["IntruderReport", "IntruderRow", "reduce_intruders", "report_intruders"]
