"""Trained arrays outside adapters, as PEFT's `modules_to_save`."""

from collections.abc import Collection, Iterator

import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree

from jno.lora import LoRAWrapper, SelectionError
from jno.lora.extending import is_adapter, modules_by_path, path_str, show_path

from .arrays import is_loaded, source_of
from .errors import MisfitError, Problems
from .layouts import TRANSPOSED, is_transposed, stack_of
from .names import HEAD, PREFIX, Rename, compiled, indexed, is_embedding, module_name, peft_name
from .ties import Ties, Untied, is_array, is_table
from .written import read_array, read_arrays


class TrainedArrays:
    """The modules that PEFT saves whole, because they contain trained or loaded arrays.

    - `modules`: the arrays of each module, by PEFT's name of the module.
    - `names`: the name of each of these modules, by its path.
    - `head`: the weight of a head that PEFT must tie to a saved embedding, by its name in the file.
    """

    def __init__(self, model: PyTree, rename: Rename, ties: Ties, adapted: Collection[str]):
        self.modules: dict[str, dict[str, np.ndarray]] = {}
        self.names: dict[str, str] = {}
        self.head: dict[str, np.ndarray] = {}
        self.problems = Problems()
        self._rename, self._ties, self._adapted = rename, ties, adapted
        leaves = jtu.tree_leaves_with_path(model, is_leaf=is_adapter)
        self._arrays = [(path_str(keys), leaf) for keys, leaf in leaves if is_array(leaf)]
        self._layers = modules_by_path(model)

    def choose(self, trainable: PyTree | None, pattern: str | None) -> None:
        """Add the modules with arrays that train, match the pattern, or were loaded."""
        for path in self._chosen(trainable, pattern):
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

    def tensors(self, infix: str = "") -> dict[str, np.ndarray]:
        """All arrays, by the names in the file."""
        modules = self.modules.items()
        arrays = {f"{n}.{infix}{field}": x for n, fields in modules for field, x in fields.items()}
        return {PREFIX + name: array for name, array in arrays.items()}

    def alone(self) -> tuple[dict[str, object], dict[str, np.ndarray]]:
        """The settings and tensors of a file without adapters, of the type that was read."""
        loaded = {path: source_of(array) for path, array in self._arrays if is_loaded(array)}
        first = next(iter(loaded.values()), None)
        if first is None or any(x is None or x.settings != first.settings for x in loaded.values()):
            settings = {"peft_type": "LN_TUNING", "target_modules": [*self.modules]}
            return settings, self.tensors("ln_tuning_layers.")
        tensors, names = {}, []
        for path, source in loaded.items():
            module = path.rpartition("/")[0]
            if source is not None and module in self._layers:
                name = peft_name(self._ties.outer(module), self._rename)
                names.append(name)
                tensors |= {f"{PREFIX}{name}.{key}": x for key, x in source.tensors.items()}
        return {**first.settings, "target_modules": names}, tensors

    def _chosen(self, trainable: PyTree | None, pattern: str | None) -> Iterator[str]:
        flags = jtu.tree_leaves_with_path(trainable)
        selected = {path_str(keys) for keys, flag in flags if flag}
        if pattern is not None:
            paths = [path for path, _ in self._arrays]
            selected = set(filter(compiled(pattern, "modules_to_save").search, paths))
            if not selected:
                raise SelectionError(
                    f"modules_to_save={pattern!r} matches no array outside of the adapters, whose "
                    f"paths are such as {', '.join(map(repr, paths[:3]))}."
                )
        for path, array in self._arrays:
            if path in selected or (is_loaded(array) and not self._is_base_table(path, array)):
                yield path

    def _is_base_table(self, path: str, array: object) -> bool:
        """Whether `array` is the table of an `Untied`, which is in the adapter's layer in PEFT."""
        layer = self._layers.get(path.rpartition("/")[0])
        if not isinstance(layer, Untied):
            return False
        inner = layer.layer.base if isinstance(layer.layer, LoRAWrapper) else layer.layer
        return array is inner.weight

    def _save(self, path: str) -> None:
        """Add the module at `path`, with a name for each layer of a stack."""
        layer = self._layers[path]
        leaves = jtu.tree_leaves_with_path(layer, is_leaf=is_adapter)
        fields = {path_str(keys): leaf for keys, leaf in leaves}
        for name, leaf in fields.items():
            if is_adapter(leaf):
                raise MisfitError(f"PEFT saves its whole module, in which {name!r} is adapted")
        arrays = {name: leaf for name, leaf in fields.items() if is_array(leaf)}
        arrays = read_arrays(arrays, f"of {show_path(path)!r}")
        outer = self._ties.outer(path)
        for index in np.ndindex(*stack_of(layer)):
            name = peft_name(indexed(outer, index), self._rename)
            if name in self.modules:
                continue
            self._check_name(name)
            self.names[indexed(path, index)] = name
            self.modules[name] = {
                # The bias of an Equinox convolution has more axes.
                field.replace("/", "."): x[index].reshape(-1) if field == "bias" else x[index]
                for field, x in arrays.items()
            }
            if is_table(layer):
                self._tie(path, name)

    def _save_head(self, layer: Untied) -> None:
        """Add the table that a head reads beside an embedding, as the weight of PEFT's head."""
        if HEAD in self.modules:
            raise MisfitError(f"PEFT has one head {HEAD!r}, and this would be a second one")
        self._check_name(HEAD)
        self.modules[HEAD] = {"weight": read_array(layer.table, "the table of an Untied")}

    def _check_name(self, name: str) -> None:
        """**Raises:** `MisfitError` if PEFT would save adapted modules by that name."""
        for adapted in self._adapted:
            if adapted.endswith(name) or f".{name}." in f".{adapted}.":
                raise MisfitError(f"PEFT would save the adapted module {adapted!r} with {name!r}")

    def _tie(self, path: str, name: str) -> None:
        """Make PEFT's head read the table of a saved embedding, if the head reads it here."""
        is_tied = self._ties.of(path)
        if is_tied is False:
            return
        if is_tied is None or not is_embedding(name):
            reads = "reads" if is_tied else "may read"
            raise MisfitError(
                f"a head {reads} it, and PEFT would give the head another table. Say tied=True if "
                "one does, tied=False if not, or freeze it, or `untie` it before it is trained"
            )
        self.head = {f"{PREFIX}{HEAD}.weight": self.modules[name]["weight"]}

    def _save_namesakes(self) -> None:
        """Add modules that PEFT would save too because their names end in a saved name."""
        if callable(self._rename):
            return  # it may only handle the names of adapted and trained modules
        for path in self._layers:
            name = module_name(self._ties.outer(path), self._rename)
            is_saved = any(name == saved or name.startswith(f"{saved}.") for saved in self.modules)
            if not is_saved and name.endswith(tuple(self.modules)):
                with self.problems.of(show_path(path)):
                    self._save(path)
