"""Find the layers of LoRAs in a model."""

import dataclasses
import math
import re
from collections.abc import Mapping

import equinox as eqx
import numpy as np
from jaxtyping import PyTree

from jno.lora import LoRAWrapper, PeftFormatError
from jno.lora.extending import show_path
from jno_lora_peft.arrays import Place
from jno_lora_peft.errors import MisfitError, Problems
from jno_lora_peft.layouts import NO_LAYER, Layout, Shape, layout_of, stack_of
from jno_lora_peft.names import Rename, module_name
from jno_lora_peft.placement import Paths

from ._pairs import Pair, find_pairs


@dataclasses.dataclass(frozen=True)
class Placed:
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
        contents = find_pairs(tree, prefix, self.problems)
        self.problems += [f"{key}: no array of LoRA has such a name" for key in contents.remaining]
        if not (contents.pairs or self.problems):
            raise PeftFormatError("The state holds no arrays of LoRA, or none with this prefix.")
        placed: list[Placed] = []
        places: dict[str, tuple[Place, ...]] = {}
        lost: dict[str, str] = {}  # the names that the layers should have
        for pair in contents.pairs:
            with self.problems.of(show_path(pair.key)):
                new = self._place(pair)
                if new is None:
                    places[pair.key], lost[pair.key] = (), module_name(pair.names[-1], self._rename)
                else:
                    places[pair.key] = new.places
                    placed.append(new)
        self.problems += self._paths.check(places, lost) if places else []
        return placed

    def _place(self, pair: Pair) -> Placed | None:
        """The layers of a pair, if the model has them."""
        if pair.law:
            raise MisfitError(f"it has the axes of {pair.source.name}: use convert_lora(to='peft')")
        place = self._find_layer(pair)
        if place is None:
            return self._on_list_of_layers(pair) if pair.source.inputs_first else None
        path, index = place
        layer, layout = self._layer(path, pair)
        if not pair.source.inputs_first:
            return Placed(pair, (place,), layout, None)
        stack = () if index else stack_of(layer)
        if not stack:
            _check_shapes(pair, layout)
            return Placed(pair, (place,), layout, None)
        axis = _stack_axis_of(pair, layout, math.prod(stack), self._stack_axis)
        return Placed(pair, tuple((path, i) for i in np.ndindex(*stack)), layout, axis)

    def _on_list_of_layers(self, pair: Pair) -> Placed | None:
        """The pair, one array for many layers, on the layers `path[0]`, `path[1]` and so on."""
        for path in pair.paths:
            if (first := self._find(f"{path}[0]")) is None:
                continue
            _, layout = self._layer(first[0], pair)
            axis = _stack_axis_of(pair, layout, None, self._stack_axis)
            names = [f"{path}[{number}]" for number in range(pair.shape_of("A")[axis])]
            places = {name: self._find(name) for name in names}
            if lost := [name for name, place in places.items() if place is None]:
                raise MisfitError(f"the model has no layer for {', '.join(lost)}")
            return Placed(pair, tuple(filter(None, places.values())), layout, axis)
        return None

    def _layer(self, path: str, pair: Pair) -> tuple[eqx.Module, Layout]:
        """The plain layer at a path. **Raises:** `MisfitError` if PEFT does not adapt it."""
        layer = self.modules[path]
        layer = layer.base if isinstance(layer, LoRAWrapper) else layer
        layout = layout_of(layer)
        if layout is None:
            raise MisfitError(NO_LAYER.format(type(layer).__name__))
        # Torch's LoRA ignores some options when it runs the update, and Flax does not.
        return layer, dataclasses.replace(layout, odd="") if pair.source.inputs_first else layout

    def _find(self, name: str) -> Place | None:
        return self._paths.find(module_name(name, self._rename))

    def _find_layer(self, pair: Pair) -> Place | None:
        if pair.source.name == "kohya" and (place := self._find_flat(pair)) is not None:
            return place
        for path in pair.paths:
            if (place := self._find(path)) is not None:
                return place
        return None if pair.source.inputs_first else self._find_flat(pair)

    def _find_flat(self, pair: Pair) -> Place | None:
        name = module_name(pair.paths[0], self._rename)
        paths = self._by_flat_name.get(name, [])
        if name in paths and isinstance(self._rename, Mapping) and name in self._rename.values():
            return self._find(pair.paths[0])
        if len(paths) > 1:
            rule, names = {f"^{pair.paths[0]}$": paths[0]}, ", ".join(map(repr, paths))
            raise MisfitError(f"{names} have this name. Say which is meant, such as rename={rule}")
        return (paths[0], ()) if paths else None


def _stack_axis_of(pair: Pair, layout: Layout, count: int | None, given: int | None) -> int:
    """The axis of both factors that runs over layers. **Raises:** `MisfitError`."""
    a, b = pair.shape_of("A"), pair.shape_of("B")
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
    a, b = pair.shape_of("A"), pair.shape_of("B")
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
