"""Helpers for authors of plugins: layers by path, messages, tables, arrays and files.

Plugins use `jno.lora`, `jno.lora.types`, `jno.lora.testing` and this module, and nothing private.
"""

import os
from typing import TYPE_CHECKING, Any

from ._checkpoint import (
    Extension,
    load_extended,
    read_file,
    read_json,
    save_extended,
    values_of,
    write_together,
)
from ._compute import (
    call_compiled,
    compute_dtype,
    equations_in,
    gauss_jordan,
    jaxprs_in,
    static_key,
)
from ._contract import adds_up, expect_model, over_stack, trainable_fields, weights_read_by
from ._errors import imported_for, warn
from ._moved import moved
from ._paths import bullets, nearest, path_str, show_array, show_path
from ._registry import default_registry
from ._sets import known_factors, put_around
from ._sharding import sharded_like
from ._showing import Bar, Printed, table
from ._tree import (
    adapted_layers,
    callable_for,
    default_adapters,
    layers_at,
    map_adapters,
    modules_by_path,
    norms_around,
)

if TYPE_CHECKING:
    from jno_lora_train import check_calibrate as check_calibrate

    from ._showing.plots import Picture

__all__ = [
    "Bar",
    "Extension",
    "Printed",
    "adapted_layers",
    "adds_up",
    "bullets",
    "call_compiled",
    "callable_for",
    "compute_dtype",
    "default_adapters",
    "default_registry",
    "equations_in",
    "expect_model",
    "gauss_jordan",
    "imported_for",
    "jaxprs_in",
    "known_factors",
    "layers_at",
    "load_extended",
    "map_adapters",
    "modules_by_path",
    "nearest",
    "new_picture",
    "norms_around",
    "over_stack",
    "path_str",
    "put_around",
    "read_file",
    "read_json",
    "save_extended",
    "sharded_like",
    "show_array",
    "show_path",
    "static_key",
    "table",
    "trainable_fields",
    "values_of",
    "warn",
    "weights_read_by",
    "write_together",
]


def __getattr__(name: str) -> Any:
    return moved(__name__, name)


def new_picture(
    width: float, height: float, path: str | os.PathLike[str] | None = None
) -> "Picture":
    """An empty `matplotlib.figure.Figure`, sizes in inches, which shows itself in a notebook.

    It needs no screen; `saved(path)` writes it to a file.

    **Arguments:** `path`: where it is to be saved. Its ending is checked now, before long work.

    **Raises:** `MissingLibraryError` without matplotlib (the extra `plot`); `SelectionError` for an
    ending that matplotlib does not know.
    """
    from ._showing.plots import Picture, check_ending

    check_ending(path)
    return Picture(width, height)
