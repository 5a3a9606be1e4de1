"""The adapter zoo of jno-lora: LoRA and its relatives on six kinds of layer (`LAYER_KINDS`).

The adapters are found through the registry (`net.lora(wrapper="dora")`, `from jno.lora import
DoRALinear`). The methods, the layer kinds and their tools are exported for plugins: a plugin can
add a method for every kind of layer, or a kind of layer for every method.
"""

# ruff: noqa: F403
from typing import TYPE_CHECKING, Any

from jno.lora.extending import imported_for

from . import adapters, methods
from ._adapters_for import adapters_for, made_when_named
from ._arrays import (
    Matrix,
    cast_like,
    compute_dtype,
    describe,
    dtype_of,
    in_compute_dtype,
    in_form_of,
    is_float_array,
    mixed,
    rotated,
    row_norms,
    scaled,
    sharded_over,
)
from ._bibtex import bibtex_of, cited
from ._layer_kind import Bias, LayerKind, Map, MeshAxes, Update, unchanged
from ._matrices_layer import MatricesLayer
from ._method import FAMILIES, Method, adapter_dtype_for
from ._orthogonal import cayley, series_for
from ._random import low_rank_start, uniform_matrix
from ._scaled import Additive, Scaled
from ._svd import Triplets, largest, smallest
from ._tracing import in_taylor_mode
from ._weighted import Weighted, weighted_sum, with_attributes
from .growing import Grown, GrownConv, GrownEmbedding, GrownLinear, grow, load_grown
from .intruders import IntruderReport, IntruderRow, reduce_intruders, report_intruders
from .layers import (
    LAYER_KINDS,
    ConvLayer,
    ConvTransposeLayer,
    EmbeddingLayer,
    InNormLayer,
    LinearLayer,
    RecurrentLayer,
)
from .layers.kernel import KernelLayer
from .methods import *
from .methods.waveft import daubechies
from .plugin import adapters_defined_in

if TYPE_CHECKING:
    from jno_lora_train import AdaLoRAController as AdaLoRAController, AdaLoRAState as AdaLoRAState

    from .adapters import *

_adapter, __dir__ = made_when_named(globals(), adapters.ADAPTERS)
__all__ = [
    "FAMILIES",
    "LAYER_KINDS",
    "Additive",
    "Bias",
    "ConvLayer",
    "ConvTransposeLayer",
    "EmbeddingLayer",
    "Grown",
    "GrownConv",
    "GrownEmbedding",
    "GrownLinear",
    "InNormLayer",
    "IntruderReport",
    "IntruderRow",
    "KernelLayer",
    "LayerKind",
    "LinearLayer",
    "Map",
    "MatricesLayer",
    "Matrix",
    "MeshAxes",
    "Method",
    "RecurrentLayer",
    "Scaled",
    "Triplets",
    "Update",
    "Weighted",
    "adapter_dtype_for",
    "adapters_defined_in",
    "adapters_for",
    "bibtex_of",
    "cast_like",
    "cayley",
    "cited",
    "compute_dtype",
    "daubechies",
    "describe",
    "dtype_of",
    "grow",
    "in_compute_dtype",
    "in_form_of",
    "in_taylor_mode",
    "is_float_array",
    "largest",
    "load_grown",
    "low_rank_start",
    "made_when_named",
    "mixed",
    "reduce_intruders",
    "report_intruders",
    "rotated",
    "row_norms",
    "scaled",
    "series_for",
    "sharded_over",
    "smallest",
    "unchanged",
    "uniform_matrix",
    "weighted_sum",
    "with_attributes",
]
__all__ += adapters.__all__
__all__ += methods.__all__


def __getattr__(name: str) -> Any:
    if name not in ("AdaLoRAController", "AdaLoRAState"):
        return _adapter(name)
    # Until 0.3, they were here.
    with imported_for(f"{__name__}.{name}", "train", "jno_lora_train"):
        import jno_lora_train

    return getattr(jno_lora_train, name)
