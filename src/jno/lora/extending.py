"""Helpers for authors of plugins. Plugins use `jno.lora` and this module, and nothing private."""

from ._checkpoint.file import (
    errors_of,
    read_file,
    read_json,
    write_atomically,
    write_file,
    written_beside,
)
from ._checkpoint.format import Extension
from ._checkpoint.reading import load_extended
from ._checkpoint.writing import save_extended, values_of
from ._compute.elimination import gauss_jordan
from ._compute.jaxprs import equations_in, jaxprs_in
from ._compute.precision import at_least_float32, compute_dtype, held_dtype, widest
from ._contract.calling import is_traced, over_stack, refusal_of_template, safely_applies
from ._contract.checks import check_adapter_name, check_key, check_number, check_rank, expect_model
from ._contract.coded import CodedArray, class_of, is_coded, refuse_coded, row_products, with_arrays
from ._contract.constructing import construct, takes
from ._contract.matrix_adapter import Composite, Member, adds_up
from ._contract.problems import RESERVED_WORDS, contract_problems, normalise_word
from ._contract.statistics import mean_shape, statistic_key, statistic_keys, statistics_of
from ._contract.wrapper import is_adapter, overrides, trainable_fields, weights_read_by
from ._dispatch import plan_call
from ._errors import errors_as, imported_for, warn
from ._merge import wide_layers
from ._paths import bullets, nearest, path_str, show_array, show_path, stable_hash
from ._peft_words import knows_words_of_jno
from ._registry.open_functions import callable_for, default_adapters
from ._registry.plugins import ClassesByName, LazyAdapter, why_unusable
from ._registry.registry import default_registry
from ._run import run
from ._sets.members import NamedSet, Proofs, SeveralAdapters, Sums, Trains, Weights, members_of
from ._sets.set import check_fit, put_around
from ._sharding import replicated_beside, sharded_like
from ._shared_arrays import filler, names_to_resolve, shared_arrays, with_shared_arrays
from ._showing.progress import Bar, tracked
from ._showing.tables import Printed, print_table, table
from ._tree import (
    adapted_layers,
    enclosing,
    layers_at,
    map_adapters,
    modules_by_path,
    norms_around,
    replace_layers,
)

# Errors, warnings and messages.
__all__ = ["Bar", "bullets", "errors_as", "imported_for", "nearest", "path_str", "print_table"]
__all__ += ["Printed", "show_array", "show_path", "stable_hash", "table", "tracked", "warn"]
# Adapter classes: checks, constructors, stacks.
__all__ += ["adds_up", "check_adapter_name", "check_key", "check_number", "check_rank"]
__all__ += ["Composite", "construct", "contract_problems", "expect_model", "is_adapter"]
__all__ += ["Member", "is_traced", "normalise_word", "over_stack", "overrides"]
__all__ += ["RESERVED_WORDS", "refusal_of_template", "takes", "trainable_fields", "weights_read_by"]
# Their data: statistics, coded and shared arrays, dtypes.
__all__ += ["CodedArray", "at_least_float32", "class_of", "compute_dtype", "equations_in"]
__all__ += ["filler", "gauss_jordan", "held_dtype", "is_coded", "jaxprs_in", "mean_shape"]
__all__ += ["names_to_resolve", "refuse_coded", "row_products", "shared_arrays", "statistic_key"]
__all__ += ["statistic_keys", "statistics_of", "widest", "with_arrays", "with_shared_arrays"]
# Layers of a model.
__all__ += ["adapted_layers", "callable_for", "default_adapters", "enclosing", "layers_at"]
__all__ += ["map_adapters", "modules_by_path", "norms_around", "replace_layers"]
__all__ += ["replicated_beside", "run", "safely_applies", "sharded_like", "wide_layers"]
# Calls, plugins and sets of adapters.
__all__ += ["ClassesByName", "LazyAdapter", "check_fit", "default_registry", "knows_words_of_jno"]
__all__ += ["NamedSet", "Proofs", "SeveralAdapters", "Sums", "members_of", "plan_call"]
__all__ += ["Trains", "Weights", "put_around", "why_unusable"]
# Files.
__all__ += ["Extension", "errors_of", "load_extended", "read_file", "read_json", "save_extended"]
__all__ += ["values_of", "write_atomically", "write_file", "written_beside"]
