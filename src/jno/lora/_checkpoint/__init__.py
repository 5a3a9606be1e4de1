"""Adapters as files: one safetensors file, with its configuration in the metadata."""

from ._configuration import FORMAT_VERSION, Entry
from ._container import FilePath
from ._loading import Contents, Loaded, load, non_finite, read, read_set
from ._saving import save
from ._wrappers import Classes

__all__ = [
    "FORMAT_VERSION",
    "Classes",
    "Contents",
    "Entry",
    "FilePath",
    "Loaded",
    "load",
    "non_finite",
    "read",
    "read_set",
    "save",
]
