"""Bases in files: a class by name, its settings as JSON, and its arrays by path."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu

from jno.lora import SelectionError
from jno.lora.extending import bullets, path_str, show_array

from ._bases import Basis, Indexed, Network, Powers, numbers
from ._hats import Hats

# No basis needs more, and a file must not make a program large by one number.
MOST, _MOST_NUMBERS, _MOST_STEPS = 2**20, 1_000, 100


class MalformedError(ValueError):
    """The part of a file that this plugin reads is wrong. Becomes a `CheckpointError`."""


class _Recipe(NamedTuple):
    """A class that a file can name: the arguments of an instance, and an instance of arguments."""

    cls: type[Basis]
    settings: Callable[[Any], dict[str, Any]]
    make: Callable[..., Basis]
    limits: dict[str, int]  # the largest value of each argument that counts something


def _network_settings(basis: Network) -> dict[str, Any]:
    mlp = basis.network
    shape = {"size": basis.size, "width": mlp.width_size, "depth": mlp.depth}
    return {"source": basis.source, "unit": basis.unit, "log": bool(basis.log)} | shape


_RECIPES = {
    "Powers": _Recipe(
        Powers,
        lambda b: {"source": b.source, "unit": b.unit, "degree": b.degree, "log": bool(b.log)},
        Powers,
        {"degree": _MOST_STEPS},
    ),
    "Network": _Recipe(
        Network,
        _network_settings,
        lambda **settings: Network(**settings, key=jax.random.key(0)),
        {"size": MOST, "width": MOST, "depth": _MOST_STEPS},
    ),
    "Indexed": _Recipe(
        Indexed,
        lambda b: {"n": b.n, "size": None if b.codes is None else len(b.source)},
        lambda n, size: Indexed(n, size, key=None if size is None else jax.random.key(0)),
        {"n": MOST, "size": MOST},
    ),
    "Hats": _Recipe(
        Hats,
        lambda b: {"nodes": b.nodes, "source": b.source, "extrapolate": bool(b.extrapolate)},
        Hats,
        {},
    ),
}


def described(basis: Basis) -> dict[str, Any]:
    """The basis as a file holds it, without its arrays: with settings, unless its code is a user's.

    **Raises:** `MalformedError` if it would not be read again.
    """
    name = type(basis).__name__
    recipe = _RECIPES.get(name)
    if recipe is None or type(basis) is not recipe.cls:
        source = None if basis.source is None else numbers(basis.source, "source")
        return {"class": name, "source": _as_json(source)}
    settings = {key: _as_json(value) for key, value in recipe.settings(basis).items()}
    _made(name, settings)
    return {"class": name, "settings": settings}


def _as_json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def template_of(description: Any, given: Basis | None) -> Basis:
    """A basis of the structure that a file describes: `given`, or an instance with shapes.

    **Raises:** `MalformedError` if the description is wrong, or needs a basis, or another basis.
    """
    if not isinstance(description, dict) or not isinstance(description.get("class"), str):
        raise MalformedError("its description lacks the class of the basis")
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
    """The arrays of a basis, or their shapes, by path.

    **Raises:** `MalformedError` if two have one path.
    """
    arrays: dict[str, Any] = {}
    for keys, leaf in jtu.tree_leaves_with_path(basis):
        if _is_array(leaf) and arrays.setdefault(path_str(keys), leaf) is not leaf:
            raise MalformedError(
                f"two arrays of its basis have the path {path_str(keys)!r}: a dict key in it holds "
                "a slash. Rename the key"
            )
    return arrays


def filled(template: Any, arrays: Mapping[str, Any]) -> Any:
    """`template` with these arrays, by path. **Raises:** `MalformedError` if they do not fit it."""
    check_forms(arrays_in(template), arrays, "basis")

    def array_at(keys: Any, leaf: Any) -> Any:
        return arrays[path_str(keys)] if _is_array(leaf) else leaf

    return jtu.tree_map_with_path(array_at, template)


def check_forms(expected: Mapping[str, Any], arrays: Mapping[str, Any], what: str) -> None:
    """**Raises:** `MalformedError` with each array that is missing, unknown, or of another form."""
    lines: list[str] = []
    for name in {**expected, **arrays}:
        form, array = expected.get(name), arrays.get(name)
        if form is None or array is None or not _fits(form, array):
            shown = ["no such array" if x is None else show_array(x) for x in (form, array)]
            lines.append(f"{name}: expected {shown[0]}, the file has {shown[1]}")
    if lines:
        raise MalformedError(f"the arrays of its {what} do not fit:\n{bullets(lines)}\n")


def _fits(form: Any, array: Any) -> bool:
    # Precision may differ: the arrays of the file stay as they are.
    floating = [jnp.issubdtype(x.dtype, jnp.floating) for x in (form, array)]
    return form.shape == array.shape and (all(floating) or form.dtype == array.dtype)


def _made(name: str, settings: Any) -> Basis:
    """The basis of these settings, with shapes for arrays."""
    if (recipe := _RECIPES.get(name)) is None:
        raise MalformedError(
            f"its basis is a {name!r:.100}, which this jno-lora-conditional does not know. It "
            f"knows {', '.join(_RECIPES)}. A newer version may know it"
        )
    if not isinstance(settings, dict):
        raise MalformedError(f"the settings of its basis are {settings!r:.100}, not an object")
    for key in {"source", "unit", "nodes"} & settings.keys():
        if not (settings[key] is None or _is_numbers(settings[key])):
            raise MalformedError(
                f"the {key} of its basis is {settings[key]!r:.100}, not a number or a list of at "
                f"most {_MOST_NUMBERS:,} numbers"
            )
    for key, most in recipe.limits.items():
        value = settings.get(key)
        if value is not None and not (type(value) is int and 0 <= value <= most):
            raise MalformedError(
                f"the {key} of its basis is {value!r:.100}, not a whole number up to {most:,}"
            )
    for key in {"log", "extrapolate"} & settings.keys():
        if type(settings[key]) is not bool:
            raise MalformedError(f"the {key} of its basis is {settings[key]!r:.100}, not a bool")
    try:
        return eqx.filter_eval_shape(lambda: recipe.make(**settings))
    except (SelectionError, TypeError, ValueError, OverflowError) as err:
        raise MalformedError(f"its basis is not a {name} that can be built: {err}") from err


def _is_numbers(value: Any) -> bool:
    listed = value if isinstance(value, list) else [value]
    return len(listed) <= _MOST_NUMBERS and all(type(x) in (int, float) for x in listed)


def _is_array(leaf: Any) -> bool:
    return eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)
