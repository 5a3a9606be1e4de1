"""The paths of the layers that PEFT's modules stand for."""

import re
from collections.abc import Mapping

from jaxtyping import PyTree

from jno.lora import SelectionError
from jno.lora.extending import bullets, modules_by_path, nearest, show_path

# The path of a layer, and its index in a stack, which is `()` for a single layer.
Place = tuple[str, tuple[int, ...]]

# One layer of a stack: `layers/q_proj[3]`, or `[1,3]` of a stack along two axes.
_SLICE = re.compile(r"(.*)\[(\d+(?:,\d+)*)\]")
# How many missing names get hints, and how many names a message shows.
_HINTS = 8
_SHOWN = 12


class Paths:
    """The paths of a model's modules, without the insides of adapters, and how to find a path."""

    def __init__(self, model: PyTree):
        self.all = list(modules_by_path(model))
        self._by_name: dict[str, list[str]] = {}
        for path in self.all:
            self._by_name.setdefault(path.replace("/", "."), []).append(path)

    def find(self, dotted: str) -> Place | None:
        """The place that is `dotted` when dots stand for its slashes, if there is one."""
        paths, index = self._by_name.get(dotted, []), ()
        if not paths and (in_stack := _SLICE.fullmatch(dotted)):
            paths = self._by_name.get(in_stack[1], [])
            index = tuple(map(int, in_stack[2].split(",")))
        if len(paths) > 1:
            raise SelectionError(
                f"Several layers may be meant by {dotted!r}: a dict key holds a slash or a dot. "
                "Rename the key."
            )
        return (paths[0], index) if paths else None

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
