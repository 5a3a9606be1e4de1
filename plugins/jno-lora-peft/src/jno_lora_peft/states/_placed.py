"""The layers of a model that the pairs of a state stand for."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import PyTree

from jno.lora import LoRAWrapper, PeftFormatError, SelectionError
from jno.lora.extending import modules_by_path, show_path

from .._errors import MisfitError, Problems
from .._names import Rename, module_name, show_index
from ..loading import Paths, Place
from ..model.layouts import NO_LAYER, Layout, layout_of, stack_of
from ._factors import check_shapes, find_stack_axis, shape_of
from ._pairs import Pair


class Placed(NamedTuple):
    """A pair, the layers that it stands for, how they lie, and their axis in both factors."""

    pair: Pair
    places: tuple[Place, ...]
    layout: Layout
    axis: int | None


class Placer:
    """Finds the layers of pairs in a model.

    - `modules`: the modules of the model, by path; `problems`: a line for each pair without layers.
    """

    def __init__(self, model: PyTree, rename: Rename, stack_axis: int | None):
        self.modules: Mapping[str, Any] = modules_by_path(model)
        self.problems = Problems()
        self._paths = Paths(model)
        if stack_axis is not None and (type(stack_axis) is not int or stack_axis < 0):
            raise SelectionError(f"stack_axis must be 0 or 1, got {stack_axis!r}")
        self._rename, self._stack_axis = rename, stack_axis
        # kohya writes underscores for dots.
        self._by_flat_name: dict[str, list[str]] = {}
        for path in self._paths.all:
            self._by_flat_name.setdefault(re.sub(r"\W", "_", path), []).append(path)

    def place(self, pairs: list[Pair]) -> list[Placed]:
        """The pairs with their layers, each layer once.

        **Raises:** `PeftFormatError` if there are no pairs, or no layer of any pair.
        """
        if not pairs:
            raise PeftFormatError("The state holds no arrays of LoRA, or none with this prefix.")
        placed: list[Placed] = []
        places: dict[str, tuple[Place, ...]] = {}
        missing: dict[str, str] = {}
        for pair in pairs:
            with self.problems.of(show_path(pair.key)):
                with_layers = self._placed(pair)
                places[pair.key] = () if with_layers is None else with_layers.places
                if with_layers is None:
                    # The name without the array, unless the layer has several arrays.
                    ends = (name for name in pair.names if pair.key.endswith(name))
                    missing[pair.key] = module_name(next(ends, pair.names[0]), self._rename)
                else:
                    placed.append(with_layers)
        self.problems += self._paths.check(places, missing) if places else []
        return placed

    def _placed(self, pair: Pair) -> Placed | None:
        stack = None
        place = self._find_flat(pair) if pair.kind == "kohya" else None
        place = place or next(filter(None, map(self._find, pair.names)), None)
        if place is None and not pair.inputs_first:
            place = self._find_flat(pair)
        elif place is None:
            stack = next((name for name in pair.names if self._find(f"{name}[0]")), None)
            place = None if stack is None else self._find(f"{stack}[0]")
        if place is None:
            return None
        path, index = place
        layer = self._layer(path)
        layout = layout_of(layer)
        if layout is None:
            raise MisfitError(NO_LAYER.format(type(layer).__name__))
        places, axis, stack_here = (place,), None, stack_of(layer)
        if stack is not None:
            axis = find_stack_axis(pair, layout, None, self._stack_axis)
            names = (f"{stack}[{i}]" for i in range(shape_of(pair, "A")[axis]))
            place_of = {name: self._find(name) for name in names}
            if unknown := [name for name, place in place_of.items() if place is None]:
                raise MisfitError(f"the model has no layer for {', '.join(map(repr, unknown))}")
            places = tuple(filter(None, place_of.values()))
        elif pair.inputs_first and stack_here and not index:
            count, *more = stack_here
            if more:
                raise MisfitError(f"the model has a stack of {stack_here} layers, of several axes")
            axis = find_stack_axis(pair, layout, count, self._stack_axis)
            places = tuple((path, i) for i in np.ndindex(*stack_here))
        self._check_indices(places)
        if pair.inputs_first and axis is None:
            check_shapes(pair, layout)
        return Placed(pair, places, layout, axis)

    def _layer(self, path: str) -> Any:
        layer = self.modules[path]
        return layer.base if isinstance(layer, LoRAWrapper) else layer

    def _check_indices(self, places: tuple[Place, ...]) -> None:
        for path, index in places:
            stack = stack_of(self._layer(path))
            if index and index not in np.ndindex(*stack):
                layers = f"a stack of {' x '.join(map(str, stack))}" if stack else "one layer"
                raise MisfitError(
                    f"the model has {layers} at {show_path(path)!r}, and no [{show_index(index)}]"
                )

    def _find(self, name: str) -> Place | None:
        return self._paths.find(module_name(name, self._rename))

    def _find_flat(self, pair: Pair) -> Place | None:
        name = module_name(pair.names[0], self._rename)
        paths = self._by_flat_name.get(name, [])
        if name in paths and isinstance(self._rename, Mapping) and name in self._rename.values():
            return self._find(pair.names[0])
        if len(paths) > 1:
            rule = {f"^{pair.names[0]}$": paths[0]}
            raise MisfitError(
                f"{', '.join(map(repr, paths))} have this name, with underscores for dots. Say "
                f"which is meant, such as rename={rule}"
            )
        return (paths[0], ()) if paths else None
