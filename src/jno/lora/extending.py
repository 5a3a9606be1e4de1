"""Helpers for authors of plugins: layers by path, messages, tables, arrays and files.

Plugins use `jno.lora`, `jno.lora.types`, `jno.lora.testing` and this module, and nothing private.
"""

import typing as _typing

from . import _moved
from ._checkpoint import (
    Extension as Extension,
    load_extended as load_extended,
    read_file as read_file,
    read_json as read_json,
    save_extended as save_extended,
    values_of as values_of,
    write_atomically as write_atomically,
)
from ._compute import (
    compute_dtype as compute_dtype,
    equations_in as equations_in,
    gauss_jordan as gauss_jordan,
    jaxprs_in as jaxprs_in,
)
from ._contract import (
    adds_up as adds_up,
    expect_model as expect_model,
    over_stack as over_stack,
    trainable_fields as trainable_fields,
    weights_read_by as weights_read_by,
)
from ._errors import imported_for as imported_for, warn as warn
from ._paths import (
    bullets as bullets,
    nearest as nearest,
    path_str as path_str,
    show_array as show_array,
    show_path as show_path,
)
from ._registry import default_registry as default_registry
from ._run import run as run
from ._sets import put_around as put_around
from ._sharding import sharded_like as sharded_like
from ._showing import Bar as Bar, Printed as Printed, table as table
from ._tree import (
    adapted_layers as adapted_layers,
    callable_for as callable_for,
    default_adapters as default_adapters,
    layers_at as layers_at,
    map_adapters as map_adapters,
    modules_by_path as modules_by_path,
    norms_around as norms_around,
)

if _typing.TYPE_CHECKING:
    from jno_lora_train import check_calibrate as check_calibrate

__all__ = _moved.exported(globals())  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> _typing.Any:
    return _moved.moved(__name__, name)
