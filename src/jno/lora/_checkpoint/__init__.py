"""Adapters as files: one safetensors file, with its configuration in the metadata."""

from ._configuration import Entry, Extension
from ._container import FilePath, read_file, read_json
from ._extension import load_extended, save_extended
from ._loading import Strict, load, load_adapters, with_loaded
from ._reading import Classes, Contents, read, read_adapters, read_metadata
from ._saving import layers_to_hash, save, save_adapters, values_of
from ._writing import write_file, write_together
