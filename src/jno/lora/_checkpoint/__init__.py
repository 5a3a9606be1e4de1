"""Adapters as files: one safetensors file, with its configuration in the metadata."""

from ._classes import Classes
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
from ._reading import (
    Contents,
    Strict,
    load,
    load_adapters,
    load_extended,
    read,
    read_adapters,
    read_for,
    read_metadata,
)
from ._writing import save, save_adapters, save_extended, values_of
