"""Adapters as files: one safetensors file, with its configuration in the metadata."""

from ._adapters import (
    Classes,
    Contents,
    Strict,
    load,
    load_adapters,
    load_extended,
    read,
    read_adapters,
    read_for,
    read_metadata,
    save,
    save_adapters,
    save_extended,
    values_of,
)
from ._file import (
    FilePath,
    errors_of,
    read_file,
    read_json,
    write_atomically,
    write_file,
    written_beside,
)
from ._format import EXTENSION, FORMAT_VERSION, SHARED, Extension, to_json
