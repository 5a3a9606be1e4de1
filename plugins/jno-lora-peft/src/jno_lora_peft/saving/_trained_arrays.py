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

from .._errors import MisfitError, Problems
from .._names import HEAD, PREFIX, Rename, is_embedding, module_name, peft_name, show_index
from ..model.arrays import is_loaded, source_of
from ..model.layouts import TRANSPOSED, is_transposed, stack_of
from ..model.ties import Ties
from ..model.untied import Untied, is_array, is_table
from ._adapters import values_for_peft


class TrainedArrays:
    """The modules of a model that PEFT saves whole, because they hold trained or loaded arrays.

    - `names`: PEFT's names for them; `tensors`: all of their arrays, by the names in the file.
    - `ties`: whether PEFT must tie a saved head to a saved embedding.
    """

    def __init__(self, model: PyTree, rename: Rename, ties: Ties, adapted: Collection[str]):
        self.names: list[str] = []
        self.tensors: dict[str, np.ndarray] = {}
        self.ties = False
        self.problems = Problems()
        self._rename, self._ties, self._adapted = rename, ties, adapted
        leaves = jtu.tree_leaves_with_path(model, is_leaf=_is_wrapper)
        self._arrays = [(path_str(keys), leaf) for keys, leaf in leaves if is_array(leaf)]
        self._layers: dict[str, Any] = modules_by_path(model)

    def choose(self, trainable: PyTree | None, pattern: str | None) -> None:
        """Add the modules whose arrays train, or match the pattern, or were loaded."""
        for path in dict.fromkeys(self._chosen(trainable, pattern)):
            module_path = path.rpartition("/")[0]
            with self.problems.of(show_path(path)):
                layer = self._layers.get(module_path)
                if layer is None:
                    raise MisfitError("it is not a field of a module, and PEFT saves modules")
                if path.endswith("weight") and is_transposed(layer):
                    raise MisfitError(TRANSPOSED)
                if isinstance(layer, Untied):
                    self._save_head(layer)
                else:
                    self._save(module_path)
        self._save_namesakes()

    def alone(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The settings and tensors of a file without adapters, of the type that was read."""
        loaded = {path: source_of(array) for path, array in self._arrays if is_loaded(array)}
        sources = {path: source for path, source in loaded.items() if source is not None}
        first = next(iter(sources.values()), None)
        if first is None or any(
            x is None or (x.type, x.settings) != (first.type, first.settings)
            for x in loaded.values()
        ):
            return self._alone_as_modules()
        tensors, names = {}, []
        for path, source in sources.items():
            module = path.rpartition("/")[0]
            if isinstance(self._layers.get(module), eqx.Module):
                name = peft_name(self._ties.outer(module), self._rename)
                names.append(name)
                tensors |= {f"{PREFIX}{name}.{key}": x for key, x in source.tensors.items()}
        return {"peft_type": first.type, "target_modules": names, **first.settings}, tensors

    def _alone_as_modules(self) -> tuple[dict[str, Any], dict[str, Any]]:
        tensors: dict[str, Any] = {}
        for name in self.names:
            prefix = f"{PREFIX}{name}."
            for key, tensor in self.tensors.items():
                if key.startswith(prefix):
                    tensors[f"{prefix}ln_tuning_layers.{key.removeprefix(prefix)}"] = tensor
        return {"peft_type": "LN_TUNING", "target_modules": self.names}, tensors

    def _chosen(self, trainable: PyTree | None, pattern: str | None) -> Iterator[str]:
        if pattern is not None:
            selected = self._matching(pattern)
        else:
            flags = jtu.tree_leaves_with_path(trainable)
            selected = {path_str(keys) for keys, flag in flags if flag}
        for path, array in self._arrays:
            if path in selected or (is_loaded(array) and not self._is_base_table(path, array)):
                yield path

    def _matching(self, pattern: str) -> set[str]:
        paths = [path for path, _ in self._arrays]
        try:
            matches = {path for path in paths if re.search(pattern, path)}
        except re.error as err:
            raise SelectionError(f"modules_to_save={pattern!r} is not valid: {err}") from err
        if not matches:
            raise SelectionError(
                f"modules_to_save={pattern!r} matches no array outside of the adapters. It is "
                f"searched in paths such as {', '.join(map(repr, paths[:3]))}."
            )
        return matches

    def _is_base_table(self, path: str, array: Any) -> bool:
        """Whether `array` is the table of an `Untied`, which PEFT has in the adapter's layer."""
        layer = self._layers.get(path.rpartition("/")[0])
        if not isinstance(layer, Untied):
            return False
        inner = layer.layer.base if isinstance(layer.layer, LoRAWrapper) else layer.layer
        return array is inner.weight

    def _save(self, path: str) -> None:
        """Add the module at `path`, with a name for each layer of a stack."""
        layer = self._layers[path]
        leaves = jtu.tree_leaves_with_path(layer, is_leaf=_is_wrapper)
        fields = {path_str(keys): leaf for keys, leaf in leaves}
        adapters = [name for name, leaf in fields.items() if _is_wrapper(leaf)]
        if adapters:
            raise MisfitError(f"PEFT saves its whole module, in which {adapters[0]!r} is adapted")
        arrays = {
            name: values_for_peft(leaf, f"the array {name!r} of {show_path(path)!r}")
            for name, leaf in fields.items()
            if is_array(leaf)
        }
        outer = self._ties.outer(path)
        for index in np.ndindex(*stack_of(layer)):
            name = peft_name(f"{outer}[{show_index(index)}]" if index else outer, self._rename)
            if name in self.names:
                continue
            self._add_name(name)
            for field, array in arrays.items():
                # The bias of a convolution has more axes here.
                values = array[index].reshape(-1) if field == "bias" else array[index]
                self.tensors[f"{PREFIX}{name}.{field.replace('/', '.')}"] = values
            if is_table(layer):
                self._tie(path, name)

    def _save_head(self, layer: Untied) -> None:
        """Add the table that a head reads beside an embedding, as PEFT's head with its weight."""
        if HEAD in self.names:
            raise MisfitError(f"PEFT has one head {HEAD!r}, and this would be a second one")
        self._add_name(HEAD)
        table = values_for_peft(layer.table, "the table of an Untied")
        self.tensors[f"{PREFIX}{HEAD}.weight"] = table

    def _add_name(self, name: str) -> None:
        """Add a name. **Raises:** `MisfitError` if PEFT would save adapted modules by it."""
        pattern = re.compile(rf"(^|.*\.){re.escape(name)}($|\..*)")
        for adapted in self._adapted:
            if adapted.endswith(name) or pattern.match(adapted):
                raise MisfitError(f"PEFT would save the adapted module {adapted!r} with {name!r}")
        self.names.append(name)

    def _tie(self, path: str, name: str) -> None:
        """Let a head that reads the table of a saved embedding read the saved table, as here."""
        is_tied = self._ties.of(path)
        if is_tied is False:
            return
        if is_tied is None or not is_embedding(name):
            reads = "reads" if is_tied else "may read"
            raise MisfitError(
                f"a head {reads} it, and PEFT would give the head another table. Say tied=True if "
                "one does, tied=False if not, or freeze it, or `untie` the embedding before it is "
                "trained"
            )
        self.ties = True
        self.tensors[f"{PREFIX}{HEAD}.weight"] = self.tensors[f"{PREFIX}{name}.weight"]

    def _save_namesakes(self) -> None:
        """Add modules that PEFT would save too, since their names end in a saved name."""
        if callable(self._rename):
            return  # it may know the names of adapted and trained modules only
        for path in self._layers:
            name = module_name(self._ties.outer(path), self._rename)
            is_saved = any(name == saved or name.startswith(f"{saved}.") for saved in self.names)
            if not is_saved and name.endswith(tuple(self.names)):
                with self.problems.of(show_path(path)):
                    self._save(path)


def _is_wrapper(node: Any) -> bool:
    return isinstance(node, LoRAWrapper)
