"""Parts of the core that the other distributions of this project use.

Their versions move together, so these names may change in any release. Plugins of other authors
use `jno.lora.extending`.
"""

from ._checkpoint import write_file
from ._compute import at_least_float32
from ._contract import (
    RESERVED_WORDS,
    check_key,
    check_number,
    check_rank,
    construct,
    contract_problems,
    is_adapter,
    is_traced,
    mean_shape,
    refusal_of_template,
    squash,
    statistic_key,
    statistic_keys,
    statistics_of,
    takes,
)
from ._dispatch import plan_call
from ._merge import wide_layers
from ._paths import stable_hash
from ._peft_words import takes_former_words
from ._registry import ClassesByName, LazyAdapter, why_unusable
from ._sets import Factors, widest
from ._sharding import on_the_mesh, replicated_beside
from ._shared_arrays import filler, names_to_resolve, shared_arrays, with_shared_arrays
from ._showing import tracked
from ._tree import claims, replace_layers

__all__ = [
    "RESERVED_WORDS",
    "ClassesByName",
    "Factors",
    "LazyAdapter",
    "at_least_float32",
    "check_key",
    "check_number",
    "check_rank",
    "claims",
    "construct",
    "contract_problems",
    "filler",
    "is_adapter",
    "is_traced",
    "mean_shape",
    "names_to_resolve",
    "on_the_mesh",
    "plan_call",
    "refusal_of_template",
    "replace_layers",
    "replicated_beside",
    "shared_arrays",
    "squash",
    "stable_hash",
    "statistic_key",
    "statistic_keys",
    "statistics_of",
    "takes",
    "takes_former_words",
    "tracked",
    "why_unusable",
    "wide_layers",
    "widest",
    "with_shared_arrays",
    "write_file",
]
