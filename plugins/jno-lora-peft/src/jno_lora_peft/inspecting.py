"""Inspect a PEFT file without a model."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from jno.lora import PeftFormatError

from .config import Config
from .files import Directory, Tensors, by_module, not_finite, read
from .hub import locate
from .servers import refused_by_servers
from .types import TYPES
from .types.type import Type


def inspect_peft(
    directory: Directory, *, revision: str | None = None, values: bool = False
) -> dict[str, Any]:
    """The contents of the adapter in `directory`, as `jno-lora inspect` prints them.

    No plugin is imported, no model is needed, and no regular expression of the file is run.

    **Arguments:**

    - `directory`, `revision`: as for `load_peft`: a directory, or a repository of the Hub.
    - `values`: also count NaN and infinity: `"non_finite"` has a line for each array with them.

    **Returns:** a dict for JSON with stable keys. `"revision"` is the commit of a repository, for
    `load_peft`. `"refused"` is the reason why `load_peft` cannot load the adapter into any model,
    or `None`. `"servers"` lists what vLLM and sglang-jax reject or ignore. `"modules"` has an item
    for each module of the model that has arrays in the file.

    **Raises:** `PeftFormatError` for damaged files, or for a repository that cannot be read;
    `SelectionError` for a `revision` of a directory; `MissingLibraryError` for a repository without
    `huggingface_hub`.
    """
    folder, commit = locate(directory, revision)
    settings, tensors = read(folder)
    peft_type = settings.get("peft_type")
    kind = TYPES.get(str(peft_type), Type())
    parts = by_module(tensors, kind.tensors, kind.shared)
    refused = None
    try:
        Config.parse(settings)
    except PeftFormatError as err:
        refused = str(err)
    facts = {
        "directory": os.fspath(directory),
        "revision": commit,
        "peft_type": peft_type,
        "base_model": settings.get("base_model_name_or_path"),
        "refused": refused,
        "servers": refused_by_servers(settings, tensors),
        "settings": {name: settings[name] for name in sorted(settings) if _is_set(settings[name])},
        "modules": [_module(name, parts) for name in parts.modules],
        "shared": _described(parts.shared),
        "arrays": len(tensors),
        **_sizes(tensors),
    }
    if values:
        facts["non_finite"] = not_finite(tensors)
    return facts


def _is_set(value: object) -> bool:
    """Whether a setting is on, because PEFT also writes settings that are off."""
    return value is not None and value is not False and value not in ("", [], {})


def _module(name: str, parts: Tensors) -> dict[str, object]:
    arrays = {
        **parts.adapters.get(name, {}),
        **parts.plain.get(name, {}),
        **{f"base_layer.{key}": array for key, array in parts.base.get(name, {}).items()},
        **{f"rows of {key}": array for key, array in parts.rows.get(name, {}).items()},
    }
    return {"module": name, "arrays": _described(arrays), **_sizes(arrays)}


def _sizes(arrays: Mapping[str, np.ndarray]) -> dict[str, int]:
    values = arrays.values()
    return {"numbers": sum(x.size for x in values), "bytes": sum(x.nbytes for x in values)}


def _described(arrays: Mapping[str, np.ndarray]) -> dict[str, dict[str, object]]:
    return {
        name: {"shape": list(array.shape), "dtype": str(array.dtype), "bytes": array.nbytes}
        for name, array in arrays.items()
    }
