"""The arrays of a file that replace arrays of the model, and the embeddings that are untied."""

from collections.abc import Mapping
from typing import Any, TypeVar

from jaxtyping import PyTree

from jno.lora import LoRAWrapper
from jno.lora.extending import show_path

from .._errors import Problems
from ..files.tensors import ByModule
from ..model.arrays import NewArrays
from ..model.ties import SHARED, modules_at
from ..model.untied import INNER, Untied, is_table, with_untied
from ._placement import Place, Placement

M = TypeVar("M")


def with_arrays(model: M, placement: Placement) -> tuple[M, dict[str, Place]]:
    """`model` with the arrays of a file, and the places of the file's modules in it."""
    # A head keeps the table that PEFT changes for lookups alone, or gets the saved table.
    model = with_untied(model, {*_tables_to_untie(model, placement), *placement.tables})
    places = _inside_untied(model, placement.places)
    layers, arrays = layers_at_places(model, places), NewArrays()
    _replace(arrays, placement.tensors.base, layers, places, placement.problems)
    for module, tensors in placement.tensors.rows.items():
        if module in places:
            path, index = places[module]
            rows, tensor = placement.config.rows(module), tensors["weight"]
            placement.problems += arrays.replace_rows(path, layers[path], index, rows, tensor)
    # They are also new in a head that reads the table of an adapted embedding.
    model = arrays.put_into(model, everywhere=True)
    layers, arrays = layers_at_places(model, places), NewArrays()
    for path, layer in modules_at(model, placement.tables).items():
        table = {"table": placement.tables[path]}
        placement.problems += arrays.replace(path, layer, (), table)
    _replace(arrays, placement.tensors.plain, layers, places, placement.problems)
    return arrays.put_into(model), places


def layers_at_places(model: PyTree, places: Mapping[str, Place]) -> dict[str, Any]:
    """The layers of a model at these places, by path."""
    return modules_at(model, {path for path, _ in places.values()})


def _tables_to_untie(model: PyTree, placement: Placement) -> set[str]:
    """The paths of embeddings that a head may read, and that PEFT changes for lookups only."""
    paths: set[str] = set()
    layers, problems = layers_at_places(model, placement.places), placement.problems
    for module, (path, _) in placement.places.items():
        is_adapted = module in placement.tensors.adapters
        changes = is_adapted or "weight" in placement.tensors.plain.get(module, {})
        if not changes or module in placement.untargeted or placement.ties.of(path) is False:
            continue
        if is_adapted and placement.config.ties_adapter_of(module):
            if placement.config.is_dora:
                problems.append(
                    f"{show_path(module)}: PEFT would tie a head to it with magnitudes of its "
                    "own. If no head reads its table, say tied=False"
                )
        elif is_table(layers[path]):
            paths.add(path)
        elif not isinstance(layers[path], LoRAWrapper):
            problems.append(f"{show_path(module)}: {SHARED}")
    return paths


def _inside_untied(model: PyTree, places: Mapping[str, Place]) -> dict[str, Place]:
    """The places, with the embedding inside of each `Untied`."""
    layers, inside = layers_at_places(model, places), dict(places)
    for module, (path, index) in places.items():
        if isinstance(layers.get(path), Untied):
            inside[module] = f"{path}/{INNER}" if path else INNER, index
    return inside


def _replace(
    arrays: NewArrays,
    tensors: ByModule,
    layers: Mapping[str, Any],
    places: Mapping[str, Place],
    problems: Problems,
) -> None:
    for module, named in tensors.items():
        if module in places:
            path, index = places[module]
            problems += arrays.replace(path, layers[path], index, named)
