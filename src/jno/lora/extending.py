"""Helpers for authors of plugins. Plugins use `jno.lora` and this module, and nothing private."""

import inspect as _inspect

from ._checkpoint import (
    Extension as Extension,
    errors_of as errors_of,
    load_extended as load_extended,
    read_file as read_file,
    read_json as read_json,
    save_extended as save_extended,
    values_of as values_of,
    write_atomically as write_atomically,
    write_file as write_file,
    written_beside as written_beside,
)
from ._compute import (
    at_least_float32 as at_least_float32,
    compute_dtype as compute_dtype,
    equations_in as equations_in,
    gauss_jordan as gauss_jordan,
    held_dtype as held_dtype,
    jaxprs_in as jaxprs_in,
    widest as widest,
)
from ._contract import (
    RESERVED_WORDS as RESERVED_WORDS,
    CodedArray as CodedArray,
    Composite as Composite,
    Member as Member,
    adds_up as adds_up,
    check_adapter_name as check_adapter_name,
    check_key as check_key,
    check_number as check_number,
    check_rank as check_rank,
    class_of as class_of,
    construct as construct,
    contract_problems as contract_problems,
    expect_model as expect_model,
    is_adapter as is_adapter,
    is_coded as is_coded,
    is_traced as is_traced,
    mean_shape as mean_shape,
    normalise_word as normalise_word,
    over_stack as over_stack,
    refusal_of_template as refusal_of_template,
    refuse_coded as refuse_coded,
    row_products as row_products,
    statistic_key as statistic_key,
    statistic_keys as statistic_keys,
    statistics_of as statistics_of,
    takes as takes,
    trainable_fields as trainable_fields,
    weights_read_by as weights_read_by,
    with_arrays as with_arrays,
)
from ._dispatch import plan_call as plan_call
from ._errors import errors_as as errors_as, imported_for as imported_for, warn as warn
from ._merge import wide_layers as wide_layers
from ._paths import (
    bullets as bullets,
    nearest as nearest,
    path_str as path_str,
    show_array as show_array,
    show_path as show_path,
    stable_hash as stable_hash,
)
from ._peft_words import knows_words_of_jno as knows_words_of_jno
from ._registry import (
    ClassesByName as ClassesByName,
    LazyAdapter as LazyAdapter,
    default_registry as default_registry,
    why_unusable as why_unusable,
)
from ._run import run as run
from ._sets import (
    NamedSet as NamedSet,
    Proofs as Proofs,
    SeveralAdapters as SeveralAdapters,
    Sums as Sums,
    Trains as Trains,
    Weights as Weights,
    check_fit as check_fit,
    members_of as members_of,
    put_around as put_around,
)
from ._sharding import (
    replicated_beside as replicated_beside,
    sharded_like as sharded_like,
)
from ._shared_arrays import (
    filler as filler,
    names_to_resolve as names_to_resolve,
    shared_arrays as shared_arrays,
    with_shared_arrays as with_shared_arrays,
)
from ._showing import (
    Bar as Bar,
    Printed as Printed,
    print_table as print_table,
    table as table,
    tracked as tracked,
)
from ._tree import (
    adapted_layers as adapted_layers,
    callable_for as callable_for,
    default_adapters as default_adapters,
    enclosing as enclosing,
    layers_at as layers_at,
    map_adapters as map_adapters,
    modules_by_path as modules_by_path,
    norms_around as norms_around,
    replace_layers as replace_layers,
    safely_applies as safely_applies,
)

# An import hook of run-time type checks adds modules.
__all__ = [  # pyright: ignore[reportUnsupportedDunderAll]
    name for name, value in globals().items() if name[0] != "_" and not _inspect.ismodule(value)
]
