"""Bases in files, as the name of a class, its settings as JSON, and its arrays by path."""

import json
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu

from jno.lora.extending import bullets, path_str, show_array

from ._bases import Basis, Indexed, Network, Powers, numbers
from ._hats import Hats


class MalformedError(ValueError):
    """The plugin's part of a file is malformed. Callers turn this into a `CheckpointError`."""


# The classes that a file can name. For a basis of another class, the user gives an instance.
_CLASSES: dict[str, Any] = {cls.__name__: cls for cls in (Powers, Network, Indexed, Hats)}


def _settings_of(basis: Any) -> dict[str, Any]:
    """The arguments that rebuild a basis of a known class, except its arrays."""
    if isinstance(basis, Powers | Network):
        settings = {"source": basis.source, "unit": basis.unit}
        # Files of 0.3 have only `log`.
        is_new = basis.coordinate not in ("z", "log")
        settings |= {"coordinate": basis.coordinate} if is_new else {"log": basis.log}
        if isinstance(basis, Powers):
            return {**settings, "degree": basis.degree}
        mlp = basis.network
        return {**settings, "size": basis.size, "width": mlp.width_size, "depth": mlp.depth}
    if isinstance(basis, Indexed):
        return {"n": basis.n, "size": None if basis.codes is None else len(basis.source)}
    return {name: getattr(basis, name) for name in ("nodes", "source", "extrapolate")}


def described(basis: Basis) -> dict[str, Any]:
    """The basis as a file stores it, without arrays, and without settings if the class is a user's.

    Values are as JSON would return them.
    """
    name = type(basis).__name__
    if _CLASSES.get(name) is type(basis):
        description = {"class": name, "settings": _settings_of(basis)}
    else:
        source = None if basis.source is None else numbers(basis.source, "source")
        description = {"class": name, "source": source}
    return json.loads(json.dumps(description))


def template_of(description: Any, given: Basis | None) -> Basis:
    """A basis of the structure that a file describes: `given`, or an instance with shapes.

    **Raises:** `MalformedError` if the description is wrong, or `given` is missing or does not fit.
    """
    name, settings = description["class"], description.get("settings")
    if given is None:
        if settings is None:
            raise MalformedError(
                f"its basis is a {name}, which a file cannot hold, since its code is yours. Give "
                "an instance of the same structure: load_conditional(..., basis=...)"
            )
        return _made(name, settings)
    for key, value in described(given).items():
        if description.get(key) != value:
            raise MalformedError(
                f"its basis has the {key} {description.get(key)!r:.100}, but `basis` has {value!r}"
            )
    return given


def arrays_in(basis: Any) -> dict[str, Any]:
    """The arrays of a basis, or their shapes, by path."""
    leaves = jtu.tree_leaves_with_path(basis)
    return {path_str(keys): leaf for keys, leaf in leaves if _is_array(leaf)}


def filled(template: Any, arrays: Mapping[str, Any]) -> Any:
    """`template` with these arrays, by path. **Raises:** `MalformedError` if they do not fit it."""
    check_forms(arrays_in(template), arrays, "basis")

    def array_at(keys: Any, leaf: Any) -> Any:
        return arrays[path_str(keys)] if _is_array(leaf) else leaf

    return jtu.tree_map_with_path(array_at, template)


def check_forms(expected: Mapping[str, Any], arrays: Mapping[str, Any], what: str) -> None:
    """**Raises:** `MalformedError` with each array that is missing, unknown or of a wrong form."""
    lines: list[str] = []
    for name in {**expected, **arrays}:
        form, array = expected.get(name), arrays.get(name)
        if form is None or array is None or not _fits(form, array):
            shown = ["no such array" if x is None else show_array(x) for x in (form, array)]
            lines.append(f"{name}: expected {shown[0]}, the file has {shown[1]}")
    if lines:
        raise MalformedError(f"the arrays of its {what} do not fit:\n{bullets(lines)}\n")


def _fits(form: Any, array: Any) -> bool:
    # The precision may differ, because the arrays of the file are used as they are.
    floating = [jnp.issubdtype(x.dtype, jnp.floating) for x in (form, array)]
    return form.shape == array.shape and (all(floating) or form.dtype == array.dtype)


def _made(name: str, settings: Any) -> Basis:
    """The basis of these settings, with shapes for arrays."""
    if (cls := _CLASSES.get(name)) is None:
        raise MalformedError(
            f"its basis is a {name!r:.100}, and this jno-lora-conditional has only "
            f"{', '.join(_CLASSES)}. Upgrade it"
        )
    has_arrays = cls is Network or (cls is Indexed and settings.get("size") is not None)
    arguments = {"key": jax.random.key(0), **settings} if has_arrays else settings
    try:
        return eqx.filter_eval_shape(lambda: cls(**arguments))
    except Exception as err:  # a damaged file may contain any settings
        raise MalformedError(f"its basis is not a {name} that can be built: {err}") from err


def _is_array(leaf: Any) -> bool:
    return eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)
