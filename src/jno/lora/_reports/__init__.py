"""Reports on adapted models: the adapters, their effects, the cost of merging, the papers."""

from ._citation import citation
from ._effects import AdapterEffect, AdapterEffects, adapter_effects, plot_adapters
from ._report import LoraReport, ReportRow, count, lora_report, report_on
