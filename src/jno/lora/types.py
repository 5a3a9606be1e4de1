"""Types for annotations: of results, of rarer errors, and of layers by their attributes."""

import typing as _typing

from . import _moved
from ._contract import ConvLike as ConvLike, LinearLike as LinearLike, Term as Term
from ._errors import (
    JnoLoraWarning as JnoLoraWarning,
    MissingLibraryError as MissingLibraryError,
    PeftFormatError as PeftFormatError,
    PluginError as PluginError,
)
from ._planning import Plan as Plan, PlanRow as PlanRow
from ._registry import PluginRecord as PluginRecord, RegisteredWrapper as RegisteredWrapper
from ._reports import LoraReport as LoraReport, ReportRow as ReportRow
from ._sets import (
    AdapterSet as AdapterSet,
    LayerForm as LayerForm,
    LooseAdapter as LooseAdapter,
)
from ._showing import Table as Table
from ._tree import LeftOut as LeftOut

if _typing.TYPE_CHECKING:
    from jno_lora_combine import *  # noqa: F403  # pyright: ignore
    from jno_lora_compare import *  # noqa: F403  # pyright: ignore
    from jno_lora_train import (
        Allocation as Allocation,
        AllocationRow as AllocationRow,
        Statistics as Statistics,
    )
    from jno_lora_zoo import Triplets as Triplets

# Written out, because `jno.lora` imports all these names, and documentation tools read them.
__all__ = ["AdapterSet", "LayerForm", "LooseAdapter", "Term"]
__all__ += ["JnoLoraWarning", "MissingLibraryError", "PeftFormatError", "PluginError"]
__all__ += ["LeftOut", "LoraReport", "Plan", "PlanRow", "ReportRow", "Table"]
__all__ += ["ConvLike", "LinearLike", "PluginRecord", "RegisteredWrapper"]


def __getattr__(name: str) -> _typing.Any:
    return _moved.moved(__name__, name)
