"""The metadata that a user gives to a file: a flat dict of text, numbers, and lists of these."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .._errors import CheckpointError
from ._container import MalformedError, brief
from ._kinds import TEXT, Kind, check, is_number

_MOST_CHARACTERS = 20_000


def _is_scalar(value: Any) -> bool:
    return isinstance(value, bool) or is_number(value) or _is_prose(value)


def _is_prose(value: Any) -> bool:
    # As other text of a file, which terminals show, but with lines and tabs.
    if not isinstance(value, str) or len(value) > _MOST_CHARACTERS:
        return False
    return value.replace("\n", "").replace("\t", "").isprintable()


def _is_value(value: Any) -> bool:
    return all(map(_is_scalar, value)) if isinstance(value, list) else _is_scalar(value)


_VALUE = Kind(
    f"printable text of at most {_MOST_CHARACTERS:,} characters, a bool, a finite number of at "
    "most 64 bits, or a list of these",
    _is_value,
)


def check_metadata(metadata: Any) -> None:
    """**Raises:** `MalformedError` unless this JSON is what `save_adapters` takes as metadata."""
    check(metadata, {TEXT: _VALUE}, "metadata")


def as_metadata(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """A user's metadata as JSON. NumPy's and JAX's numbers and 1-d arrays become Python's.

    **Raises:** `CheckpointError`, which names the key, if a file cannot hold a value.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise CheckpointError(
            f"`metadata` must be a dict, such as {{'nu': 0.05}}, but is {brief(given)}."
        )
    metadata = {key: _as_json(key, value) for key, value in given.items()}
    try:
        check_metadata(metadata)
    except MalformedError as err:
        problem = str(err).removeprefix("in its configuration, ")
        raise CheckpointError(f"These metadata cannot be saved: {problem}.") from err
    return metadata


def _as_json(key: Any, value: Any) -> Any:
    if isinstance(value, Tracer):
        raise CheckpointError(
            f"metadata/{key} is being traced. Save outside of `jit`, `grad` and `vmap`."
        )
    if isinstance(value, np.generic | np.ndarray | jax.Array) and value.ndim <= 1:
        is_key = jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
        return value if is_key else np.asarray(value).tolist()
    if isinstance(value, list | tuple):
        # A list in a list stays as it is, and is refused.
        return [x if isinstance(x, list | tuple) else _as_json(key, x) for x in value]
    return value
