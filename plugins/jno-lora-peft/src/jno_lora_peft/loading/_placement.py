"""The layers of a model that the modules of a file stand for."""

import re
from collections.abc import Mapping
from typing import Any

from jaxtyping import PyTree

from jno.lora import LoRAWrapper, PeftFormatError, SelectionError
from jno.lora.extending import bullets, modules_by_path, nearest, show_path

from .._errors import MisfitError, Problems
from .._names import Rename, dotted_path
from ..files.config import Config
from ..files.tensors import ByModule, Tensors
from ..model.arrays import NewArrays
from ..model.ties import Ties, modules_at
from ..model.untied import INNER, Untied, is_table, with_untied
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
        paths = [path for path in self.all if path]
        names = [module.replace(".", "/") for module in modules[:_HINTS]]
        near = dict.fromkeys(path for name in names for path in nearest(name, paths, 2))
        return (
            f"No module of the file is in the model. The file has\n{bullets(modules, _SHOWN)}\n"
            f"and the nearest layers of the model are\n{bullets(near, _SHOWN)}\n"
            'Say what belongs together with `rename`, such as rename={"^model/": ""} (rules for '
            "slash-joined names) or a function from PEFT's name to the path here. One layer of a "
            r'stack has an index at the end: rename={r"^layers/(\d+)/(.*)": r"blocks/\2[\1]"}.'
        )


class Placement:
    """The places of a file's modules in a model, which gets the arrays of the file.

    - `model`: with the new arrays of adapted layers, and with embeddings untied as needed.
    - `arrays`: further new arrays, which do not depend on adapters.
    - `places`: by module; `layers`: by path; `tensors`: of the modules.
    - `heads`: modules that PEFT adapts without targeting them: heads, and arrays of experts.
    """

    def __init__(self, model: PyTree, config: Config, tensors: Tensors, rename: Rename, ties: Ties):
        self.problems = Problems()
        self.heads: set[str] = set()
        self.places: dict[str, Place] = {}
        self.layers: dict[str, Any] = {}
        self._config, self._rename, self._ties = config, rename, ties
        self._paths = Paths(model)
        tensors, experts = apart(config, tensors, lambda name: self._sizes(model, name))
        self.heads |= experts
        # Heads that read a table of the model need no place in it.
        tensors = self._without_tied_heads(tensors)
        heads = heads_of_tables(config, tensors, ties, lambda module: self._place(module) is None)
        self.tensors = tensors.without(heads)
        self._find_places()
        self._enter_untied(model)
        model = self._with_base_arrays(model)
        # A head keeps the table that PEFT changes for lookups alone, or gets the saved table.
        tables = dict(heads.values())
        model = with_untied(model, {*self._tables_to_untie(), *tables})
        self.arrays = NewArrays()
        for path, layer in modules_at(model, tables).items():
            self.problems += self.arrays.replace(path, layer, (), {"table": tables[path]})
        self._enter_untied(model)
        self._replace(self.arrays, self.tensors.plain)
        self.model = model

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

    def _sizes(self, model: PyTree, name: str) -> Size | None:
        """The size of an array that PEFT adapts without its module."""
        place = self._place(name)
        return None if place is None else sizes_of(modules_at(model, place[:1])[place[0]], place[1])

    def _without_tied_heads(self, tensors: Tensors) -> Tensors:
        """The tensors, except the tensors of heads that read the table of their embedding."""
        served: set[str] = set()
        for head, embedding in tied_heads(self._config, tensors):
            self.heads |= {head, embedding}
            place = self._place(embedding)
            is_tied = place is not None and self._ties.of(place[0])
            if is_tied or self._place(head) is None:
                served.add(head)
                with self.problems.of(show_path(head)):
                    check_head(self._config, head, embedding, tensors)
                    if place is not None and self._ties.is_untied(place[0]):
                        raise MisfitError(
                            "the file ties it to its embedding, which is untied in the model. Load "
                            "into the model as it was before"
                        )
        return tensors.without(served)

    def _find_places(self) -> None:
        if not self._paths.all:
            raise PeftFormatError("The model holds no Equinox modules to adapt.")
        missing: dict[str, str] = {}
        first_at: dict[Place, str] = {}
        for module in self.tensors.modules:
            place = self._place(module)
            if place is None:
                missing[module] = dotted_path(module, self._rename)
                continue
            self.places[module] = place
            first = first_at.setdefault(place, module)
            if first != module:
                self.problems.append(f"{module}: renamed to the same path as {first!r}")
        if not self.tensors.modules:
            raise PeftFormatError("The PEFT adapter holds no tensors.")
        if not self.places:
            raise PeftFormatError(self._paths.none_found(self.tensors.modules))
        self.problems += self._paths.not_found(missing)

    def _enter_untied(self, model: PyTree) -> None:
        """Set `places`, with each `Untied` replaced by its inner embedding, and `layers`."""
        layers = modules_at(model, {path for path, _ in self.places.values()})
        for module, (path, index) in self.places.items():
            if isinstance(layers.get(path), Untied):
                self.places[module] = f"{path}/{INNER}" if path else INNER, index
        self.layers = modules_at(model, {path for path, _ in self.places.values()})

    def _with_base_arrays(self, model: PyTree) -> PyTree:
        """The model with new arrays in adapted layers, also in heads that read their tables."""
        arrays = NewArrays()
        self._replace(arrays, self.tensors.base)
        for module, tensors in self.tensors.rows.items():
            if module in self.places:
                path, index = self.places[module]
                layer, rows = self.layers[path], self._config.rows(module)
                self.problems += arrays.replace_rows(path, layer, index, rows, tensors["weight"])
        return arrays.put_into(model, everywhere=True)

    def _replace(self, arrays: NewArrays, tensors: ByModule) -> None:
        for module, named in tensors.items():
            if module in self.places:
                path, index = self.places[module]
                self.problems += arrays.replace(path, self.layers[path], index, named)

    def _tables_to_untie(self) -> set[str]:
        """The paths of embeddings that a head may read, and that PEFT changes for lookups only."""
        paths: set[str] = set()
        for module, (path, _) in self.places.items():
            layer, is_adapted = self.layers[path], module in self.tensors.adapters
            changes = is_adapted or "weight" in self.tensors.plain.get(module, {})
            if not changes or module in self.heads or self._ties.of(path) is False:
                continue
            if is_adapted and self._config.ties_adapter_of(module):
                if self._config.is_dora:
                    self.problems.append(
                        f"{show_path(module)}: PEFT would tie a head to it with magnitudes of its "
                        "own. If no head reads its table, say tied=False"
                    )
            elif is_table(layer):
                paths.add(path)
            elif not isinstance(layer, LoRAWrapper):
                self.problems.append(
                    f"{show_path(module)}: other layers read its weight through eqx.nn.Shared, and "
                    "PEFT changes this layer alone. Let the other layer hold the weight"
                )
        return paths
