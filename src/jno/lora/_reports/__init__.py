"""Reports on adapted models: the adapters, the cost of merging, the papers."""

from ._citation import citation
from ._report import LoraReport, ReportRow, count, lora_report, report_on
