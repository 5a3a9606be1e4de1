"""Adapters as files: one safetensors file, with its configuration in the metadata."""

from ._configuration import Entry
from ._container import FilePath, opened, regular_file
from ._json import MalformedError, parse_json
from ._loading import Contents, Loaded, load, non_finite, read, read_set
from ._save_load import load_adapters, read_adapters, save_adapters
from ._saving import save, values_of
from ._wrappers import Classes
from ._writing import put_together, written_beside

__all__ = [
    "Classes",
    "Contents",
    "Entry",
    "FilePath",
    "Loaded",
    "MalformedError",
    "load",
    "load_adapters",
    "non_finite",
    "opened",
    "parse_json",
    "put_together",
    "read",
    "read_adapters",
    "read_set",
    "regular_file",
    "save",
    "save_adapters",
    "values_of",
    "written_beside",
]
