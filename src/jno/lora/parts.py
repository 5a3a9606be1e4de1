"""Parts of the core that the other distributions of this project use.

Their versions move together, so these names may change in any release. Plugins of other authors
use `jno.lora.extending`.
"""

from . import _moved
from ._checkpoint import (
    errors_of as errors_of,
    write_file as write_file,
    written_beside as written_beside,
)
from ._compute import (
    at_least_float32 as at_least_float32,
    held_dtype as held_dtype,
    widest as widest,
)
from ._contract import (
    RESERVED_WORDS as RESERVED_WORDS,
    check_adapter_name as check_adapter_name,
    check_key as check_key,
    check_number as check_number,
    check_rank as check_rank,
    construct as construct,
    contract_problems as contract_problems,
    is_adapter as is_adapter,
    is_traced as is_traced,
    mean_shape as mean_shape,
    refusal_of_template as refusal_of_template,
    squash as squash,
    statistic_key as statistic_key,
    statistic_keys as statistic_keys,
    statistics_of as statistics_of,
    takes as takes,
)
from ._dispatch import plan_call as plan_call
from ._errors import failing as failing
from ._merge import wide_layers as wide_layers
from ._paths import stable_hash as stable_hash
from ._peft_words import takes_former_words as takes_former_words
from ._registry import (
    ClassesByName as ClassesByName,
    LazyAdapter as LazyAdapter,
    why_unusable as why_unusable,
)
from ._sets import (
    Member as Member,
    SeveralAdapters as SeveralAdapters,
    Weights as Weights,
    check_fit as check_fit,
    members_of as members_of,
)
from ._sharding import replicated_beside as replicated_beside
from ._shared_arrays import (
    filler as filler,
    names_to_resolve as names_to_resolve,
    shared_arrays as shared_arrays,
    with_shared_arrays as with_shared_arrays,
)
from ._showing import print_table as print_table, tracked as tracked
from ._tree import claims as claims, enclosing as enclosing, replace_layers as replace_layers

__all__ = _moved.exported(globals())  # pyright: ignore[reportUnsupportedDunderAll]
