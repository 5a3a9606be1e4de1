"""Between the names of PEFT's modules and the paths of layers here."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax.tree_util as jtu
from jaxtyping import PyTree

from .._contract import is_wrapper
from .._errors import SelectionError
from .._paths import FEW, KeyPath, bullets, nearest, path_str, show_path
from .._tree import NORMALISED

Rename = Mapping[str, str] | Callable[[str], str] | None

# One layer of a stack: `layers/q_proj[3]`, or `[1,3]` of a stack along two axes.
_SLICE = re.compile(r"(.*)\[(\d+(?:,\d+)*)\]")
# For how many names that are not there the nearest ones are looked for.
_HINTS = 8


def module_name(path: str, rename: Rename) -> str:
    """PEFT's name for the module at `path`."""
    return _renamed(path, rename).replace("/", ".")


def dotted_path(module: str, rename: Rename) -> str:
    """The path here of PEFT's `module`, with dots for slashes, so that both can be compared."""
    given = module if callable(rename) else module.replace(".", "/")
    return _renamed(given, rename).replace("/", ".")


def slice_of(path: str) -> tuple[str, tuple[int, ...]]:
    """A path and the index in a stack that stands behind it. Without one the index is `()`."""
    found = _SLICE.fullmatch(path)
    return (found[1], tuple(map(int, found[2].split(",")))) if found else (path, ())


def _renamed(name: str, rename: Rename) -> str:
    if rename is None:
        return name
    if callable(rename):
        new = rename(name)
        if not isinstance(new, str):
            raise SelectionError(
                f"`rename` must return a string, but for {name!r} it returned {new!r}"
            )
        return new
    for pattern, replacement in rename.items():
        try:
            name = re.sub(pattern, replacement, name)
        except re.error as err:
            raise SelectionError(
                f"The rule {pattern!r}: {replacement!r} of `rename` is no valid regular expression "
                f"with its replacement: {err}"
            ) from err
    return name


class Layers:
    """The modules of a model by their paths, those in adapters left out."""

    def __init__(self, model: PyTree):
        self._modules: dict[str, list[tuple[str, Any]]] = {}
        self.in_norm: dict[str, str] = {}
        outer: list[KeyPath] = []

        def look(keys: KeyPath, node: Any) -> bool:
            if not isinstance(node, eqx.Module):
                return False
            path = path_str(keys)
            # The walk goes down first, so that a norm comes before what is in it.
            norm = next((n for n in outer if keys[: len(n)] == n), None)
            if norm is not None:
                self.in_norm[path] = show_path(path_str(norm))
            elif isinstance(node, tuple(NORMALISED)):
                outer.append(keys)
            self._modules.setdefault(path.replace("/", "."), []).append((path, node))
            return is_wrapper(node)

        jtu.tree_flatten_with_path(model, is_leaf=look, is_leaf_takes_path=True)

    @property
    def paths(self) -> list[str]:
        """The paths of all modules."""
        return [path for found in self._modules.values() for path, _ in found]

    def find(self, dotted: str) -> tuple[str, Any] | None:
        """The path and the module of that path, with dots for slashes.

        **Raises:** `SelectionError` if there are two.
        """
        found = self._modules.get(dotted, [])
        if len(found) > 1:
            raise SelectionError(
                f"Several layers may be meant by {dotted!r}: a dict key holds a slash or a dot. "
                "Rename the key."
            )
        return found[0] if found else None


def not_found(missing: Mapping[str, str], layers: Layers) -> list[str]:
    """A line for each of the modules that the model lacks.

    **Arguments:**

    - `missing`: PEFT's name of a module, and the path that it stands for.
    """
    lines: list[str] = []
    for number, (module, dotted) in enumerate(missing.items()):
        path = dotted.replace(".", "/")
        meant = "" if path == module.replace(".", "/") else f" (renamed {path!r})"
        near = nearest(path, layers.paths, n=3) if number < _HINTS else []
        hint = f"; the nearest are {', '.join(map(repr, map(show_path, near)))}" if near else ""
        lines.append(f"{show_path(module)}{meant}: the model has no such layer{hint}")
    return lines


def both_sides(modules: list[str], layers: Layers) -> str:
    """For a file of which no module is in the model: the names on both sides, the nearest first."""
    paths = [path for path in layers.paths if path]
    near = dict.fromkeys(
        path for module in modules[:_HINTS] for path in nearest(module.replace(".", "/"), paths, 2)
    )
    return (
        f"No module of the file is in the model. The file has\n{bullets(modules, FEW)}\n"
        f"and the nearest layers of the model are\n{bullets(near, FEW)}\n"
        'Say what belongs together with `rename`, such as rename={"^model/": ""} (rules for '
        "slash-joined names) or a function from PEFT's name to the path here."
    )
