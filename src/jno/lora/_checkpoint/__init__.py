"""Adapters as files: one safetensors file, with its configuration in the metadata."""

from ._configuration import Entry
from ._container import FilePath
from ._loading import Contents, Loaded, load, non_finite, read, read_set
from ._plain_files import read_json, read_tensors, write_together
from ._save_load import load_adapters, read_adapters, save_adapters
from ._saving import save, values_of
from ._wrappers import Classes
