"""Functions that read weights of adapted layers, at the price of the adapters."""

from ._report import Use, UseReport
from ._through import report_uses, through

__all__ = ["Use", "UseReport", "report_uses", "through"]
