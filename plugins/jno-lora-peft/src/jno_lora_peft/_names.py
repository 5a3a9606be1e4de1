"""Names of PEFT's modules, and the paths of layers that they stand for."""

import re
from collections.abc import Callable, Mapping

from jaxtyping import PyTree

from jno.lora import SelectionError
from jno.lora.extending import bullets, modules_by_path, nearest, show_path

from ._updates import MisfitError

Rename = Mapping[str, str] | Callable[[str], str] | None
# The path of a layer, and the index in its stack; `()` for a layer that is not one of a stack.
Place = tuple[str, tuple[int, ...]]

# One layer of a stack: `layers/q_proj[3]`, or `[1,3]` of a stack along two axes.
_SLICE = re.compile(r"(.*)\[(\d+(?:,\d+)*)\]")
# PEFT ties a head to an embedding of the first name, and finds both by these.
EMBEDDING, HEAD = "embed_tokens", "lm_head"
# For how many names that are not there the nearest ones are looked for, and how many are shown.
_HINTS = 8
_SHOWN = 12


def module_name(path: str, rename: Rename) -> str:
    """PEFT's name for the module at `path`. **Raises:** `SelectionError` for a bad `rename`."""
    if callable(rename):
        name = rename(path)
        if not isinstance(name, str):
            raise SelectionError(
                f"`rename` must return a string, but for {path!r} it returned {name!r}"
            )
        return name.replace("/", ".")
    name = path
    for pattern, replacement in (rename or {}).items():
        try:
            name = re.sub(pattern, replacement, name)
        except re.error as err:
            raise SelectionError(
                f"The rule {pattern!r}: {replacement!r} of `rename` is not a valid regular "
                f"expression with its replacement: {err}"
            ) from err
    return name.replace("/", ".")


def peft_name(path: str, rename: Rename) -> str:
    """`module_name`, if PEFT can call a module so. **Raises:** `MisfitError` if it cannot."""
    module = module_name(path, rename)
    if "[" in module:
        raise MisfitError(
            "it is a stack of layers, and each has a name of its own in PEFT, such as that of "
            f"{path!r} here. Give the names with `rename`, such as "
            r'rename={r"^blocks/(.*)\[(\d+)\]$": r"layers/\2/\1"} from blocks/q_proj[3] to '
            "layers/3/q_proj"
        )
    if not module or module.startswith(".") or module.endswith("."):
        raise MisfitError(
            f"PEFT cannot call a module {module!r}. Give it a name with `rename`, such as "
            'rename={"^$": "linear"} for a model that is one layer'
        )
    return module


def is_embedding(module: str) -> bool:
    """Whether PEFT can tie a head to the module of that name."""
    return module.rpartition(".")[2] == EMBEDDING


def may_be_tied(module: str) -> bool:
    """Whether PEFT looks for ties because a setting has that name."""
    return module.rpartition(".")[2] in (EMBEDDING, HEAD)


def show_index(index: tuple[int, ...]) -> str:
    """An index in a stack as it is written."""
    return ",".join(map(str, index))


def dotted_path(module: str, rename: Rename) -> str:
    """The path here of PEFT's `module`, with dots for slashes, so that both can be compared."""
    return module_name(module if callable(rename) else module.replace(".", "/"), rename)


class Paths:
    """The paths of a model's modules, those inside adapters left out, and how to find one."""

    def __init__(self, model: PyTree):
        self.all = list(modules_by_path(model))
        self._by_name: dict[str, list[str]] = {}
        for path in self.all:
            self._by_name.setdefault(path.replace("/", "."), []).append(path)

    def find(self, dotted: str) -> Place | None:
        """The one place that is `dotted` when dots stand for its slashes, if there is one."""
        found, index = self._by_name.get(dotted, []), ()
        if not found and (in_stack := _SLICE.fullmatch(dotted)):
            found = self._by_name.get(in_stack[1], [])
            index = tuple(map(int, in_stack[2].split(",")))
        if len(found) > 1:
            raise SelectionError(
                f"Several layers may be meant by {dotted!r}: a dict key holds a slash or a dot. "
                "Rename the key."
            )
        return (found[0], index) if found else None

    def not_found(self, missing: Mapping[str, str]) -> list[str]:
        """A line for each missing module, from PEFT's names and the paths that they stand for."""
        lines: list[str] = []
        for number, (module, dotted) in enumerate(missing.items()):
            path = dotted.replace(".", "/")
            meant = "" if path == module.replace(".", "/") else f" (renamed {path!r})"
            near = nearest(path, self.all, n=3) if number < _HINTS else []
            hint = f"; the nearest are {', '.join(map(repr, map(show_path, near)))}" if near else ""
            lines.append(f"{show_path(module)}{meant}: the model has no such layer{hint}")
        return lines

    def none_found(self, modules: list[str]) -> str:
        """The message for a file without a module of the model: the names on both sides."""
        paths = [path for path in self.all if path]
        near = dict.fromkeys(
            path
            for module in modules[:_HINTS]
            for path in nearest(module.replace(".", "/"), paths, 2)
        )
        return (
            f"No module of the file is in the model. The file has\n{bullets(modules, _SHOWN)}\n"
            f"and the nearest layers of the model are\n{bullets(near, _SHOWN)}\n"
            'Say what belongs together with `rename`, such as rename={"^model/": ""} (rules for '
            "slash-joined names) or a function from PEFT's name to the path here. One layer of a "
            r'stack has an index at the end: rename={r"^layers/(\d+)/(.*)": r"blocks/\2[\1]"}.'
        )
