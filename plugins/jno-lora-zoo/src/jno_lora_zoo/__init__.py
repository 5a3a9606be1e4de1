"""The adapter zoo of jno-lora: LoRA and its relatives on six kinds of layer (`LAYER_KINDS`).

The registry finds the adapters (`net.lora(wrapper="dora")`, `from jno.lora import DoRALinear`). The
methods, the layer kinds and their tools are exported so that plugins can add a method for every
kind of layer, or a kind of layer for every method.
"""

# ruff: noqa: F403
import types
import typing

from . import adapters
from ._adapters_for import adapters_for as adapters_for, made_when_named as made_when_named
from ._arrays import (
    Matrix as Matrix,
    cast_like as cast_like,
    compute_dtype as compute_dtype,
    describe as describe,
    dtype_of as dtype_of,
    in_compute_dtype as in_compute_dtype,
    in_form_of as in_form_of,
    is_float_array as is_float_array,
    mixed as mixed,
    rotated as rotated,
    row_norms as row_norms,
    scaled as scaled,
    sharded_over as sharded_over,
)
from ._bibtex import bibtex_of as bibtex_of, cited as cited
from ._by_name import ByName as ByName, plain_layer as plain_layer
from ._kind_for import kind_for as kind_for
from ._layer_kind import (
    Bias as Bias,
    KindOfLayer as KindOfLayer,
    LayerKind as LayerKind,
    Map as Map,
    MatrixLayer as MatrixLayer,
    MeshAxes as MeshAxes,
    Update as Update,
    unchanged as unchanged,
)
from ._matrices_layer import MatricesLayer as MatricesLayer, linear_layer as linear_layer
from ._method import FAMILIES as FAMILIES, Method as Method, adapter_dtype_for as adapter_dtype_for
from ._orthogonal import cayley as cayley, series_for as series_for
from ._per_matrix import MethodPerMatrix as MethodPerMatrix, per_matrix as per_matrix
from ._products import (
    Factors as Factors,
    known_factors as known_factors,
    known_form as known_form,
)
from ._random import low_rank_start as low_rank_start, uniform_matrix as uniform_matrix
from ._scaled import Additive as Additive, Scaled as Scaled
from ._svd import Triplets as Triplets, largest as largest, smallest as smallest
from ._tracing import in_taylor_mode as in_taylor_mode
from ._weighted import (
    Weighted as Weighted,
    weighted_sum as weighted_sum,
    with_attributes as with_attributes,
)
from .growing import (
    Grown as Grown,
    GrownConv as GrownConv,
    GrownEmbedding as GrownEmbedding,
    GrownLinear as GrownLinear,
    grow as grow,
    load_grown as load_grown,
)
from .layers import (
    LAYER_KINDS as LAYER_KINDS,
    ConvLayer as ConvLayer,
    ConvTransposeLayer as ConvTransposeLayer,
    EmbeddingLayer as EmbeddingLayer,
    InNormLayer as InNormLayer,
    LinearLayer as LinearLayer,
    RecurrentLayer as RecurrentLayer,
)
from .layers.kernel import KernelLayer as KernelLayer
from .methods import *
from .methods.waveft import daubechies as daubechies
from .plugin import adapters_defined_in as adapters_defined_in
from .ranks import (
    AdaLoRAController as AdaLoRAController,
    AdaLoRAState as AdaLoRAState,
    Allocation as Allocation,
    AllocationRow as AllocationRow,
    allocate as allocate,
)
from .statistics import (
    Statistics as Statistics,
    check_statistics_from as check_statistics_from,
    collect_statistics as collect_statistics,
)

if typing.TYPE_CHECKING:
    from .adapters import *

__getattr__, __dir__ = made_when_named(globals(), adapters.ADAPTERS)
# Every name that is imported above is public.
__all__ = [  # pyright: ignore[reportUnsupportedDunderAll]
    name
    for name, value in vars().items()
    if not (name.startswith("_") or isinstance(value, types.ModuleType))
]
__all__ += adapters.__all__
