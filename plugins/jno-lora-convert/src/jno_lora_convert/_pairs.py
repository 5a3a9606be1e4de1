"""Find the LoRAs in a tree of arrays, and their layers in a model.

Each library names the two factors of a LoRA differently.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree

from jno.lora import LoRAWrapper, PeftFormatError
from jno.lora.extending import path_str, show_path
from jno_lora_peft.arrays import Place
from jno_lora_peft.errors import MisfitError, Problems
from jno_lora_peft.layouts import NO_LAYER, Layout, Shape, layout_of, stack_of
from jno_lora_peft.names import PREFIX, Rename, module_name
from jno_lora_peft.placement import Paths
from jno_lora_peft.types.type import widened

from ._sources import Source, find_source

# Flax and Orbax store an array inside a variable.
_VARIABLE = re.compile(r"/(raw_)?value$")
_ALPHA = re.compile(r"(.*)/alpha")
# KerasHub writes the rank of all layers.
_RANK = re.compile(r"lora(/vars)?/rank")


@dataclasses.dataclass
class Pair:
    """One LoRA of a tree.

    - `key`: the name of its layer in the tree, with the name of the array if the layer has several;
        `names`: its possible paths in the model; `weights`: the possible names of its weight,
        by the name of its `{module}`.
    - `source`: how its project lays out the arrays; `law`: the key of its law there, if any.
    - `arrays`: `"A"`, `"B"`, `"mid"` and `"alpha"`, if present; `places`: the indices of their
        leaves.
    - `is_embedding`: the names of its arrays say that its weight is a table.
    """

    key: str
    names: tuple[str, ...]
    source: Source
    weights: tuple[str, ...] = ()
    law: str = ""
    is_embedding: bool = False
    arrays: dict[str, Any] = dataclasses.field(default_factory=dict)
    places: dict[str, int] = dataclasses.field(default_factory=dict)

    @property
    def title(self) -> str:
        """The name of the layer, without the prefix; of the array, if the layer has several."""
        if self.law or self.source.name == "diffusers":  # the newest name of a processor
            return self.names[-1]
        return next(name for name in self.names if self.key.endswith(name))


def normalise(key: str) -> str:
    """The name of an array with slashes, without the variable and PEFT's prefix."""
    return _VARIABLE.sub("", key.removeprefix(PREFIX).replace(".", "/"))


def pairs_of(tree: PyTree, prefix: str) -> tuple[list[Pair], list[str], list[str], list[str]]:
    """The complete pairs of a tree, a line for each array without a pair, and the other names.

    Only names that start with `prefix` are read. The last list has the names without it.
    """
    pairs: dict[tuple[str, str], Pair] = {}
    alphas: dict[str, Any] = {}
    problems: list[str] = []
    unknown: list[str] = []
    skipped: list[str] = []
    leaves = [(path_str(keys), leaf) for keys, leaf in jtu.tree_leaves_with_path(tree)]
    start = prefix.replace(".", "/")
    start += "/" * any(normalise(key).startswith(f"{start}/") for key, _ in leaves)
    for number, (key, leaf) in enumerate(leaves):
        name = normalise(key)
        if not name.startswith(start):
            skipped.append(key)
            continue
        name = name[len(start) :]
        if match := _ALPHA.fullmatch(name):
            alphas[match[1]] = leaf
        elif _RANK.fullmatch(name):
            continue
        elif (factor := find_source(name)) is None:
            unknown.append(key)
        else:
            source, groups = factor
            module, array = groups["module"], groups.get("array", "")
            if key.startswith(PREFIX):
                source = source._replace(alpha="needed")
            weights = tuple(x.replace("{array}", array) for x in source.weights)
            weights += tuple(f"{start}{weight}" for weight in weights if start)
            is_table = "embedding" in name.removeprefix(module)
            law, names = groups.get("law", ""), _names(module, array)
            new = Pair(start + module, names, source, weights, law, is_table)
            pair = pairs.setdefault((module, array), new)
            if groups["part"] in pair.arrays:
                problems.append(f"{key}: a second array for the same factor")
            pair.arrays[groups["part"]], pair.places[groups["part"]] = leaf, number
    whole: list[Pair] = []
    counts = collections.Counter(module for module, _ in pairs)
    for (module, array), pair in pairs.items():
        if counts[module] > 1 and array:
            pair.key = start + pair.names[0]
            pair.weights = tuple(x.replace(f"}}/{array}", "}") for x in pair.weights)
        if missing := [part for part in "AB" if part not in pair.arrays]:
            problems.append(f"{pair.key}: its factor {missing[0]} is missing")
            continue
        if module in alphas:
            pair.arrays["alpha"], pair.source = alphas[module], pair.source._replace(alpha="none")
        whole.append(pair)
    lost = sorted(alphas.keys() - {module for module, _ in pairs})
    problems += [f"{start}{name}/alpha: no factors are beside it" for name in lost]
    return whole, problems, unknown, skipped


def _names(module: str, array: str) -> tuple[str, ...]:
    """The possible paths of a layer, or of a declared array."""
    if array:
        return f"{module}/{array}".removeprefix("/"), module
    # Older versions of diffusers keep adapters in a processor, whose output projection is in a list
    # with a dropout.
    names = dict.fromkeys((module, module.replace("/processor/", "/")))
    if module.rpartition("/")[2] == "to_out":
        names |= dict.fromkeys(f"{name}/0" for name in [*names])
    return tuple(names)


def with_core(first: np.ndarray, core: np.ndarray) -> np.ndarray:
    """The first factor with kohya's core: a kernel followed by a product, which are a kernel."""
    if core.shape[:2] != (len(first), len(first)):
        raise MisfitError(f"lora_mid has the shape {core.shape}, and the rank is {len(first)}")
    first = widened(first.reshape(len(first), -1))
    return np.moveaxis(np.tensordot(widened(core), first, axes=(1, 0)), -1, 1)


def shape_of(pair: Pair, part: str) -> Shape:
    """The shape of an array of a pair."""
    return tuple(pair.arrays[part].shape)


class Placed(NamedTuple):
    """A pair with its layers, their layout, and their axis in both factors."""

    pair: Pair
    places: tuple[Place, ...]
    layout: Layout
    axis: int | None


class Placer:
    """Finds the layers of pairs in a model.

    - `modules`: the modules of the model, by path; `problems`: a line for each pair without layers.
    """

    def __init__(self, model: PyTree, rename: Rename, stack_axis: int | None):
        self._paths, self.problems = Paths(model), Problems()
        self.modules = self._paths.modules
        self._rename, self._stack_axis = rename, stack_axis
        # kohya replaces dots by underscores.
        self._by_flat_name: dict[str, list[str]] = {}
        for path in self.modules:
            self._by_flat_name.setdefault(re.sub(r"\W", "_", path), []).append(path)

    def place(self, tree: PyTree, prefix: str = "") -> list[Placed]:
        """The pairs of a tree with their layers, each layer once.

        **Raises:** `PeftFormatError` if there are no pairs, or no pair has a layer.
        """
        pairs, lines, unknown, _ = pairs_of(tree, prefix)
        self.problems += [*lines, *(f"{key}: no array of LoRA has such a name" for key in unknown)]
        if not (pairs or self.problems):
            raise PeftFormatError("The state holds no arrays of LoRA, or none with this prefix.")
        placed: dict[str, Placed | None] = {}
        titles = {pair.key: pair.title for pair in pairs}
        for pair in pairs:
            with self.problems.of(show_path(pair.key)):
                placed[pair.key] = self._placed(pair)
        places = {key: () if new is None else new.places for key, new in placed.items()}
        names = {key: module_name(titles[key], self._rename) for key, x in places.items() if not x}
        self.problems += self._paths.check(places, names) if places else []
        return [*filter(None, placed.values())]

    def _placed(self, pair: Pair) -> Placed | None:
        if pair.law:
            raise MisfitError(f"it has the axes of {pair.source.name}: use convert_lora(to='peft')")
        stack = None
        place = self._find_flat(pair) if pair.source.name == "kohya" else None
        place = place or next(filter(None, map(self._find, pair.names)), None)
        if place is None and not pair.source.inputs_first:
            place = self._find_flat(pair)
        elif place is None:
            stack = next((name for name in pair.names if self._find(f"{name}[0]")), None)
            place = None if stack is None else self._find(f"{stack}[0]")
        if place is None:
            return None
        path, index = place
        layer = self.modules[path]
        layer = layer.base if isinstance(layer, LoRAWrapper) else layer
        layout = layout_of(layer)
        if layout is None:
            raise MisfitError(NO_LAYER.format(type(layer).__name__))
        places, axis, stack_here = (place,), None, stack_of(layer)
        if stack is not None:
            axis = _stack_axis_of(pair, layout, None, self._stack_axis)
            names = [f"{stack}[{i}]" for i in range(shape_of(pair, "A")[axis])]
            if unknown := [name for name in names if self._find(name) is None]:
                raise MisfitError(f"the model has no layer for {', '.join(map(repr, unknown))}")
            places = tuple(filter(None, map(self._find, names)))
        elif pair.source.inputs_first and stack_here and not index:
            axis = _stack_axis_of(pair, layout, math.prod(stack_here), self._stack_axis)
            places = tuple((path, i) for i in np.ndindex(*stack_here))
        if pair.source.inputs_first and axis is None:
            _check_shapes(pair, layout)
        return Placed(pair, places, layout, axis)

    def _find(self, name: str) -> Place | None:
        return self._paths.find(module_name(name, self._rename))

    def _find_flat(self, pair: Pair) -> Place | None:
        name = module_name(pair.names[0], self._rename)
        paths = self._by_flat_name.get(name, [])
        if name in paths and isinstance(self._rename, Mapping) and name in self._rename.values():
            return self._find(pair.names[0])
        if len(paths) > 1:
            rule, names = {f"^{pair.names[0]}$": paths[0]}, ", ".join(map(repr, paths))
            raise MisfitError(f"{names} have this name. Say which is meant, such as rename={rule}")
        return (paths[0], ()) if paths else None


def _stack_axis_of(pair: Pair, layout: Layout, count: int | None, given: int | None) -> int:
    """The axis of both factors that runs over layers. **Raises:** `MisfitError`."""
    a, b = shape_of(pair, "A"), shape_of(pair, "B")
    fitting = [
        axis
        for axis, sizes in enumerate(zip(a[:2], b[:2], strict=False))
        if given in (None, axis)
        and {*sizes} == {count or sizes[0]}
        and _fits(a[:axis] + a[axis + 1 :], b[:axis] + b[axis + 1 :], layout)
    ]
    if len(fitting) != 1:
        raise MisfitError(
            f"the factors {a} and {b} must fit {count or 'many'} layers, each with {layout.inputs} "
            f"inputs and {layout.outputs} outputs, along one axis: 0 or 1. If they fit along both, "
            "say stack_axis=0 or stack_axis=1"
        )
    return fitting[0]


def _check_shapes(pair: Pair, layout: Layout) -> None:
    """**Raises:** `MisfitError` unless the factors fit one such layer."""
    a, b = shape_of(pair, "A"), shape_of(pair, "B")
    if layout.groups > 1:
        raise MisfitError(f"the layer has {layout.groups} groups, which Qwix's update mixes")
    if not _fits(a, b, layout):
        wanted = ", ".join(map(str, (*layout.kernel, layout.inputs)))
        raise MisfitError(
            f"expected factors ({wanted}, rank) and (rank, {layout.outputs}), or more axes with "
            f"the same products, got {a} and {b}"
        )


def _fits(a: Shape, b: Shape, layout: Layout) -> bool:
    is_kernel = a[:-1] == (*layout.kernel, layout.inputs)
    is_kernel |= math.prod(layout.kernel) == 1 and math.prod(a[:-1]) == layout.inputs
    return is_kernel and len(a) > 1 and a[-1:] == b[:1] and math.prod(b[1:]) == layout.outputs
