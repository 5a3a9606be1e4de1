"""Match the modules of a file with the layers of a model.

PEFT writes the tensors of a tied head and of its embedding separately. If the model uses one table
for both, the head needs no layer.
"""

import contextlib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PyTree

from jno.lora import LoRAWrapper, PeftFormatError
from jno.lora.extending import bullets, modules_by_path, nearest, show_path

from .arrays import Place
from .config import Config
from .errors import MisfitError, Problems
from .experts import Size, sizes_of, split_experts
from .files import Tensors
from .layouts import layout_of, stack_of
from .names import HEAD, Rename, dotted_path, is_embedding
from .ties import Ties

# One layer of a stack: `layers/q_proj[3]`, or `[1,3]` of a stack along two axes.
_SLICE = re.compile(r"(.*)\[(\d+(?:,\d+)*)\]")
_NO_TENSORS = "but the file has no tensors of it"
_INCOMPLETE = "The file is incomplete, or adapter_config.json names layers that PEFT's model lacks"
# How many missing names get hints, and how many names a message lists.
_HINTS = 8
_SHOWN = 12


class Paths:
    """The paths of a model's modules, without the insides of adapters, and a search for paths."""

    def __init__(self, model: PyTree):
        self.modules = modules_by_path(model)
        self._by_name = {path.replace("/", "."): path for path in self.modules}

    def find(self, dotted: str) -> Place | None:
        path, index = self._by_name.get(dotted), ()
        if path is None and (in_stack := _SLICE.fullmatch(dotted)):
            path = self._by_name.get(in_stack[1])
            index = tuple(map(int, in_stack[2].split(",")))
        return None if path is None else (path, index)

    def check(self, places: Mapping[str, Sequence[Place]], renamed: Mapping[str, str]) -> list[str]:
        """A line for each module without a layer, or with another module's layer.

        `renamed` has the dotted paths of the modules without a layer.

        **Raises:** `PeftFormatError` if no module has a layer.
        """
        lines: list[str] = []
        first_at: dict[Place, str] = {}
        for module, places_of_module in places.items():
            firsts = {first_at.setdefault(place, module) for place in places_of_module} - {module}
            lines += [f"{module}: it stands for the same layer as {first!r}" for first in firsts]
        for number, (module, dotted) in enumerate(renamed.items()):
            path = dotted.replace(".", "/")
            meant = "" if path == module.replace(".", "/") else f" (renamed {path!r})"
            near = nearest(path, list(self.modules), n=3) if number < _HINTS else []
            hint = f"; the nearest are {', '.join(map(repr, map(show_path, near)))}" if near else ""
            lines.append(f"{show_path(module)}{meant}: the model has no such layer{hint}")
        if len(renamed) == len(places):
            raise PeftFormatError(
                f"No module of the file is in the model:\n{bullets(lines, _SHOWN)}\n"
                'Say what belongs together by `rename`, such as rename={"^model/": ""}. A layer of '
                r'a stack has an index: rename={r"^layers/(\d+)/(.*)": r"blocks/\2[\1]"}.'
            )
        return lines


class Placement:
    """The layers for a file's modules.

    - `problems`: a line for each module that does not fit.
    - `tensors`: the tensors of the modules; `places`: the layers' paths and indices, by module.
    - `untargeted`: modules that PEFT adapts without targeting: heads, and arrays of experts.
    - `tables`: the saved weights of heads that the model lacks, by the path of their embedding.
    """

    def __init__(self, model: PyTree, config: Config, tensors: Tensors, rename: Rename, ties: Ties):
        self.config, self.ties, self.problems = config, ties, Problems()
        self._paths, self._rename = Paths(model), rename
        if not self._paths.modules:
            raise PeftFormatError("The model holds no Equinox modules to adapt.")
        in_file = {*tensors.modules}
        tensors, self.untargeted = split_experts(config, tensors, self._size)
        heads = self._heads_of_tables(tensors)
        self.tables = dict(heads.values())
        self.tensors = tensors.without({*self._served_heads(tensors), *heads})
        self.places = self._find_places()
        if rename is None:  # else, the layers that are missing in the file have no known names
            self.problems += self._missing_in_file(in_file)

    def _missing_in_file(self, in_file: set[str]) -> list[str]:
        """A line for each layer that the configuration names and the file has no tensors of.

        PEFT warns, and runs these layers without an adapter. A name of `modules_to_save` that the
        model lacks is fine: PEFT itself writes `["classifier", "score"]`.
        """
        lines: list[str] = []
        # The modules of the file, and the modules that hold them.
        parts = (module.split(".") for module in in_file)
        present = {name for x in parts for name in itertools.accumulate(x, "{}.{}".format)}
        for path, layer in self._paths.modules.items():
            name = path.replace("/", ".")
            if name in present:
                continue
            if self.config.saves(name) and any(map(eqx.is_array, jax.tree.leaves(layer))):
                lines.append(f"{show_path(name)}: modules_to_save names it, {_NO_TENSORS}")
            elif self._is_adapted(name, layer):
                lines.append(f"{show_path(name)}: target_modules names it, {_NO_TENSORS}")
        return lines + [_INCOMPLETE] * bool(lines)

    def _is_adapted(self, name: str, layer: eqx.Module) -> bool:
        """Whether PEFT would surely adapt a layer with this name."""
        targets, layout = self.config.settings.get("target_modules"), layout_of(layer)
        if targets in (None, "all-linear") or layout is None or isinstance(layer, LoRAWrapper):
            return False
        with contextlib.suppress(MisfitError):
            layout.check_kind(self.config.type.layers)
            return self.config.is_target(name) and not stack_of(layer)
        return False

    def _place(self, module: str) -> Place | None:
        name, _, expert = module.partition("[")
        dotted = dotted_path(name, self._rename)
        if expert:
            # After the index of a block, in a stack of blocks.
            dotted = f"{dotted[:-1]},{expert}" if dotted.endswith("]") else f"{dotted}[{expert}"
        place = self._paths.find(dotted)
        if place is None and name.endswith(".weight"):  # an array, found by its layer
            end = f"[{expert}" if expert else ""
            return self._place(name.removesuffix(".weight") + end)
        return place

    def _size(self, name: str) -> Size | None:
        """The size of an array that PEFT adapts without its module."""
        place = self._place(name)
        return None if place is None else sizes_of(self._paths.modules[place[0]], place[1])

    def _served_heads(self, tensors: Tensors) -> set[str]:
        """The tied heads that need no layer because they use the table of their embedding.

        All tied heads and their embeddings become `untargeted`.
        """
        served: set[str] = set()
        for head, embedding in _tied_heads(self.config, tensors):
            self.untargeted |= {head, embedding}
            place = self._place(embedding)
            if (place is not None and self.ties.of(place[0])) or self._place(head) is None:
                served.add(head)
                with self.problems.of(show_path(head)):
                    _check_head(self.config, head, embedding, tensors)
                    if place is not None and self.ties.is_untied(place[0]):
                        raise MisfitError(
                            f"the file ties it to {embedding!r}, which is untied in the model"
                        )
        return served

    def _heads_of_tables(self, tensors: Tensors) -> dict[str, tuple[str, np.ndarray]]:
        """The embeddings and the saved weights of heads that the model lacks."""
        heads: dict[str, tuple[str, np.ndarray]] = {}
        for module, arrays in tensors.plain.items():
            is_head = module.endswith(HEAD) and self.config.saves(module)
            if is_head and [*arrays] == ["weight"] and self._place(module) is None:
                tables = self.ties.tables(arrays["weight"].shape)
                if len(tables) == 1:
                    heads[module] = tables[0], arrays["weight"]
        return heads

    def _find_places(self) -> dict[str, Place]:
        if not self.tensors.modules:
            raise PeftFormatError("The PEFT adapter holds no tensors.")
        place_of = {module: self._place(module) for module in self.tensors.modules}
        places = {module: place for module, place in place_of.items() if place is not None}
        missing = {m: dotted_path(m, self._rename) for m in place_of if m not in places}
        candidates = {m: [p] if p else [] for m, p in place_of.items()}
        self.problems += self._paths.check(candidates, missing)
        return places


# The factors of a linear layer, and the factors of an embedding, which are their transposes.
_PAIRS = (("lora_B.weight", "lora_embedding_A"), ("lora_A.weight", "lora_embedding_B"))
_ONE_TABLE = "but one table serves both in the model. Give it a head of its own, with a copy"


def _tied_heads(config: Config, tensors: Tensors) -> Iterator[tuple[str, str]]:
    """The heads that PEFT tied by `ensure_weight_tying`, each with its embedding."""
    for embedding in tensors.modules if config.ties else ():
        adapter, saved = tensors.adapters.get(embedding, {}), tensors.plain.get(embedding, {})
        if "lora_embedding_A" in adapter:
            for module, factors in tensors.adapters.items():
                is_head = module.endswith(HEAD) or not config.is_target(module)
                if is_head and all(
                    name in factors
                    and transposed in adapter
                    and factors[name].T.shape == adapter[transposed].shape
                    for name, transposed in _PAIRS
                ):
                    yield module, embedding
        elif is_embedding(embedding) and "weight" in saved:
            for module, arrays in tensors.plain.items():
                if module == embedding or config.saves(module) or "weight" not in arrays:
                    continue
                if arrays["weight"].shape == saved["weight"].shape:
                    yield module, embedding


def _check_head(config: Config, module: str, embedding: str, tensors: Tensors) -> None:
    """**Raises:** `MisfitError` if one table cannot serve the embedding and its head."""
    if module in tensors.plain:
        pairs = [(tensors.plain[name]["weight"] for name in (module, embedding))]
    elif config.settings.get("use_dora"):
        raise MisfitError(f"PEFT scales its rows, and the columns of {embedding!r}, {_ONE_TABLE}")
    else:
        of_embedding, of_head = tensors.adapters[embedding], tensors.adapters[module]
        pairs = [(of_embedding[transposed], of_head[name].T) for name, transposed in _PAIRS]
        pairs += [(number(module), number(embedding)) for number in (config.rank, config.alpha)]
    if not all(np.array_equal(x, y) for x, y in pairs):
        raise MisfitError(f"its tensors, rank or alpha differ from {embedding!r}, {_ONE_TABLE}")
