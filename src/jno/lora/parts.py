"""Parts of the core that the other distributions of this project use.

Their versions move together, so these names may change in any release. Plugins of other authors
use `jno.lora.extending`.
"""

from ._checkpoint import write_file
from ._contract import (
    construct,
    contract_problems,
    mean_shape,
    statistic_key,
    statistic_keys,
    statistics_of,
    takes,
)
from ._merge import wide_layers
from ._paths import stable_hash
from ._registry import ClassesByName, LazyAdapter
from ._sets import Factors
from ._sharding import on_the_mesh
from ._shared_arrays import filler, names_to_resolve, shared_arrays, with_shared_arrays
from ._showing import tracked

__all__ = [
    "ClassesByName",
    "Factors",
    "LazyAdapter",
    "construct",
    "contract_problems",
    "filler",
    "mean_shape",
    "names_to_resolve",
    "on_the_mesh",
    "shared_arrays",
    "stable_hash",
    "statistic_key",
    "statistic_keys",
    "statistics_of",
    "takes",
    "tracked",
    "wide_layers",
    "with_shared_arrays",
    "write_file",
]
