"""The layers of a model that the modules of a file stand for."""

import re
from collections.abc import Mapping, Sequence

from jaxtyping import PyTree

from jno.lora import PeftFormatError, SelectionError
from jno.lora.extending import bullets, modules_by_path, nearest, show_path

from .._errors import MisfitError, Problems
from .._names import Rename, dotted_path
from ..files.config import Config
from ..files.tensors import Tensors
from ..model.ties import Ties, modules_at
from ._experts import Size, apart, sizes_of
from ._heads import check_head, heads_of_tables, tied_heads

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
        paths, index = self._by_name.get(dotted, []), ()
        if not paths and (in_stack := _SLICE.fullmatch(dotted)):
            paths = self._by_name.get(in_stack[1], [])
            index = tuple(map(int, in_stack[2].split(",")))
        if len(paths) > 1:
            raise SelectionError(f"Rename a dict key with a slash or a dot: {dotted!r} is {paths}.")
        return (paths[0], index) if paths else None

    def check(self, places: Mapping[str, Sequence[Place]], renamed: Mapping[str, str]) -> list[str]:
        """A line for each module without a place, or with the place of another module.

        `renamed` has the dotted paths that modules without a place stand for.

        **Raises:** `PeftFormatError` if no module has a place.
        """
        lines: list[str] = []
        first_at: dict[Place, str] = {}
        for module, places_of_module in places.items():
            firsts = {first_at.setdefault(place, module) for place in places_of_module} - {module}
            lines += [f"{module}: it stands for the same layer as {first!r}" for first in firsts]
        for number, (module, dotted) in enumerate(renamed.items()):
            path = dotted.replace(".", "/")
            meant = "" if path == module.replace(".", "/") else f" (renamed {path!r})"
            near = nearest(path, self.all, n=3) if number < _HINTS else []
            hint = f"; the nearest are {', '.join(map(repr, map(show_path, near)))}" if near else ""
            lines.append(f"{show_path(module)}{meant}: the model has no such layer{hint}")
        if len(renamed) == len(places):
            raise PeftFormatError(
                f"No module of the file is in the model:\n{bullets(lines, _SHOWN)}\n"
                'Say what belongs together with `rename`, such as rename={"^model/": ""} (rules '
                "for slash-joined names) or a function from PEFT's name to the path here. One "
                "layer of a stack has an index at the end: "
                r'rename={r"^layers/(\d+)/(.*)": r"blocks/\2[\1]"}.'
            )
        return lines


class Placement:
    """The layers that a file's modules stand for.

    - `problems`: a line for each module that does not fit.
    - `tensors`: the tensors of the modules; `places`: by module.
    - `untargeted`: modules that PEFT adapts without targeting them: heads, and arrays of experts.
    - `tables`: the saved weights of heads that the model lacks, by the path of their embedding.
    """

    def __init__(self, model: PyTree, config: Config, tensors: Tensors, rename: Rename, ties: Ties):
        self.config, self.ties, self.problems = config, ties, Problems()
        self._paths, self._rename = Paths(model), rename
        tensors, experts = apart(config, tensors, lambda name: self._size(model, name))
        self.untargeted = experts
        tensors = tensors.without(self._served_heads(tensors))
        heads = heads_of_tables(config, tensors, ties, lambda module: self._place(module) is None)
        self.tables = dict(heads.values())
        self.tensors = tensors.without(heads)
        self.places = self._find_places()

    def _place(self, module: str) -> Place | None:
        name, _, expert = module.partition("[")
        dotted = dotted_path(name, self._rename)
        if expert:
            # Behind the index of a block, in a stack of blocks.
            dotted = f"{dotted[:-1]},{expert}" if dotted.endswith("]") else f"{dotted}[{expert}"
        place = self._paths.find(dotted)
        if place is None and name.endswith(".weight"):  # an array, by the layer that holds it
            end = f"[{expert}" if expert else ""
            return self._place(name.removesuffix(".weight") + end)
        return place

    def _size(self, model: PyTree, name: str) -> Size | None:
        """The size of an array that PEFT adapts without its module."""
        place = self._place(name)
        return None if place is None else sizes_of(modules_at(model, place[:1])[place[0]], place[1])

    def _served_heads(self, tensors: Tensors) -> set[str]:
        """The tied heads that need no place, because the table of their embedding serves them.

        All tied heads and their embeddings become `untargeted`.
        """
        served: set[str] = set()
        for head, embedding in tied_heads(self.config, tensors):
            self.untargeted |= {head, embedding}
            place = self._place(embedding)
            if (place is not None and self.ties.of(place[0])) or self._place(head) is None:
                served.add(head)
                with self.problems.of(show_path(head)):
                    check_head(self.config, head, embedding, tensors)
                    if place is not None and self.ties.is_untied(place[0]):
                        raise MisfitError(
                            f"the file ties it to {embedding!r}, which is untied in the model. "
                            "Load into the model as it was before"
                        )
        return served

    def _find_places(self) -> dict[str, Place]:
        if not self._paths.all:
            raise PeftFormatError("The model holds no Equinox modules to adapt.")
        if not self.tensors.modules:
            raise PeftFormatError("The PEFT adapter holds no tensors.")
        place_of = {module: self._place(module) for module in self.tensors.modules}
        places = {module: place for module, place in place_of.items() if place is not None}
        missing = {m: dotted_path(m, self._rename) for m in place_of if m not in places}
        every_place = {m: [place] if place else [] for m, place in place_of.items()}
        self.problems += self._paths.check(every_place, missing)
        return places
