"""Trained arrays outside of adapters, as PEFT's `modules_to_save`."""

import re
from collections.abc import Collection, Iterator
from typing import Any

import equinox as eqx
import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree

from jno.lora import LoRAWrapper, SelectionError
from jno.lora.extending import modules_by_path, path_str, show_path

from ._files import PREFIX
from ._layouts import is_transposed, layout_of
from ._loaded import is_loaded, source_of
from ._names import HEAD, Rename, is_embedding, module_name, peft_name, show_index
from ._ties import Ties
from ._untied import Untied, is_array, is_table
from ._updates import MisfitError
from ._written import values_for_peft


class Others:
    """The modules of a model that PEFT saves whole.

    - `names`: PEFT's names for them; `tensors`: all of their arrays, by the names in the file.
    - `ties`: whether PEFT must tie a saved head to a saved embedding.
    - `problems`: a line for each array that PEFT cannot save.
    """

    def __init__(
        self,
        model: PyTree,
        rename: Rename,
        ties: Ties,
        adapted: Collection[str],
    ):
        self.names: list[str] = []
        self.tensors: dict[str, np.ndarray] = {}
        self.ties = False
        self.problems: list[str] = []
        self._rename = rename
        self._ties = ties
        self._adapted = adapted
        self._nodes = jtu.tree_leaves_with_path(model, is_leaf=lambda n: isinstance(n, LoRAWrapper))
        self._layers: dict[str, Any] = modules_by_path(model)

    def choose(self, trainable: PyTree | None, pattern: str | None) -> None:
        """Fill in the modules that hold arrays which train, match, or were loaded."""
        chosen = dict.fromkeys(self._chosen(trainable, pattern))
        for path in chosen:
            module_path = path.rpartition("/")[0]
            try:
                self._check(path, module_path)
                layer = self._layers[module_path]
                if isinstance(layer, Untied):
                    self._save_head(layer)
                else:
                    self._save(module_path)
            except MisfitError as err:
                self.problems += [f"{show_path(path)}: {line}" for line in err.args]
        self._save_namesakes()

    def alone(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The settings and tensors of a file without adapters, of the type that was read."""
        sources = {path_str(keys): source_of(leaf) for keys, leaf in self._nodes if is_loaded(leaf)}
        types = {None if source is None else source.type for source in sources.values()}
        settings = [source.settings for source in sources.values() if source is not None]
        if len(types) != 1 or None in types or any(own != settings[0] for own in settings):
            tensors = {
                f"{PREFIX}{name}.ln_tuning_layers.{key.removeprefix(f'{PREFIX}{name}.')}": tensor
                for name in self.names
                for key, tensor in self.tensors.items()
                if key.startswith(f"{PREFIX}{name}.")
            }
            return {"peft_type": "LN_TUNING", "target_modules": self.names}, tensors
        tensors, names = {}, []
        for path, source in sources.items():
            module = path.rpartition("/")[0]
            if source is not None and isinstance(self._layers.get(module), eqx.Module):
                name = peft_name(self._ties.outer(module), self._rename)
                names.append(name)
                tensors |= {f"{PREFIX}{name}.{part}": x for part, x in source.tensors.items()}
        return {"peft_type": types.pop(), "target_modules": names, **settings[0]}, tensors

    def _chosen(self, trainable: PyTree | None, pattern: str | None) -> Iterator[str]:
        trains: dict[str, Any] = {}
        if trainable is not None:
            trains = {path_str(keys): flag for keys, flag in jtu.tree_leaves_with_path(trainable)}
        search = None if pattern is None else _compiled(pattern)
        found = False
        for keys, leaf in self._nodes:
            path = path_str(keys)
            if isinstance(leaf, LoRAWrapper) or not is_array(leaf):
                continue
            matches = search is not None and search(path) is not None
            found |= matches
            wanted = matches if search is not None else trains.get(path, False)
            if wanted or (is_loaded(leaf) and not self._is_base_table(path, leaf)):
                yield path
        if search is not None and not found:
            raise SelectionError(
                f"modules_to_save={pattern!r} matches no array outside of the adapters. It is "
                f"searched in paths such as {', '.join(self._some_paths())}."
            )

    def _is_base_table(self, path: str, leaf: Any) -> bool:
        """Whether `leaf` is the table of an `Untied`, which PEFT has in the adapter's layer."""
        layer = self._layers.get(path.rpartition("/")[0])
        if not isinstance(layer, Untied):
            return False
        inner = layer.layer.base if isinstance(layer.layer, LoRAWrapper) else layer.layer
        return leaf is inner.weight

    def _some_paths(self) -> list[str]:
        paths = [path_str(keys) for keys, leaf in self._nodes if is_array(leaf)]
        return [repr(path) for path in paths[:3]]

    def _check(self, path: str, module_path: str) -> None:
        """**Raises:** `MisfitError` if the array at `path` is not one of a module of PEFT's."""
        layer, name = self._layers.get(module_path), path.rpartition("/")[2]
        if layer is None:
            raise MisfitError("it is not a field of a module, and PEFT saves modules")
        if name == "weight" and is_transposed(layer):
            raise MisfitError(
                "Torch lays out the kernel of a transposed convolution otherwise, with the inputs "
                "first and each axis reversed"
            )

    def _save(self, path: str) -> None:
        """Add the module at `path`, each layer of a stack under a name of its own."""
        layer = self._layers[path]
        held = {
            path_str(keys): leaf
            for keys, leaf in jtu.tree_leaves_with_path(
                layer, is_leaf=lambda n: isinstance(n, LoRAWrapper)
            )
        }
        inside = [name for name, leaf in held.items() if isinstance(leaf, LoRAWrapper)]
        if inside:
            raise MisfitError(
                f"PEFT would save its whole module, in which {inside[0]!r} carries an adapter"
            )
        arrays = {name: leaf for name, leaf in held.items() if is_array(leaf)}
        outer, stack = self._ties.outer(path), _stack_of(layer)
        for index in np.ndindex(*stack):
            name = peft_name(f"{outer}[{show_index(index)}]" if index else outer, self._rename)
            if name in self.names:
                continue
            self._check_name(name)
            self.names.append(name)
            for field, array in arrays.items():
                values = values_for_peft(array, f"the array {field!r} of {show_path(path)!r}")
                own = values[index]
                if field == "bias":
                    own = own.reshape(-1)  # that of a convolution has more axes here
                self.tensors[f"{PREFIX}{name}.{field.replace('/', '.')}"] = own
            if is_table(layer):
                self._tie(path, name)

    def _save_head(self, layer: Untied) -> None:
        """Add the table that a head reads beside an embedding, as the head that has it in PEFT."""
        if HEAD in self.names:
            raise MisfitError(f"PEFT has one head {HEAD!r}, and this would be a second one")
        self._check_name(HEAD)
        self.names.append(HEAD)
        table = values_for_peft(layer.table, "the table of an Untied")
        self.tensors[f"{PREFIX}{HEAD}.weight"] = table

    def _check_name(self, name: str) -> None:
        """**Raises:** `MisfitError` if PEFT would take adapted modules for this one."""
        pattern = re.compile(rf"(^|.*\.){re.escape(name)}($|\..*)")
        for other in self._adapted:
            if other.endswith(name) or pattern.match(other):
                raise MisfitError(
                    f"PEFT would save the adapted module {other!r} with {name!r}, whose name its "
                    "own ends in"
                )

    def _tie(self, path: str, name: str) -> None:
        """Let a head that reads the table of a saved embedding read the saved one, as here."""
        is_tied = self._ties.of(path)
        if is_tied is False:
            return
        if is_tied is None or not is_embedding(name):
            raise MisfitError(
                (
                    "a head reads it"
                    if is_tied
                    else "a head may read it, which a model does not tell"
                )
                + ", and PEFT would give it a table of its own. "
                + ("Freeze it" if is_tied else "Say tied=True if one does, tied=False if not")
                + ", or `untie` the embedding before it is trained"
            )
        self.ties = True
        self.tensors[f"{PREFIX}{HEAD}.weight"] = self.tensors[f"{PREFIX}{name}.weight"]

    def _save_namesakes(self) -> None:
        """Add modules that PEFT would save too, since their names end in that of a saved one."""
        if callable(self._rename):
            return  # it may know the names of adapted and trained modules only
        for path in self._layers:
            name = module_name(self._ties.outer(path), self._rename)
            meant = name in self.names or any(name.startswith(f"{own}.") for own in self.names)
            if not meant and name.endswith(tuple(self.names)):
                try:
                    self._save(path)
                except MisfitError as err:
                    self.problems += [f"{show_path(path)}: {line}" for line in err.args]


def _stack_of(layer: Any) -> tuple[int, ...]:
    """The axes of the layers in a stack, as far as its own shape is known."""
    weight: Any = getattr(layer, "weight", None)
    layout = layout_of(layer)
    own = getattr(layer, "shape", None) if layout is None else layout.weight_shape
    shape = np.shape(weight) if is_array(weight) else ()
    if not isinstance(own, tuple) or shape[len(shape) - len(own) :] != own:
        return ()
    return shape[: len(shape) - len(own)]


def _compiled(pattern: str) -> Any:
    try:
        return re.compile(pattern).search
    except re.error as err:
        raise SelectionError(f"modules_to_save={pattern!r} is not a valid regex: {err}") from err
