"""The adapters of a model as the tensors of one file."""

from collections.abc import Mapping
from typing import Any

from jaxtyping import PyTree

from jno.lora import LoRAWrapper, resolve
from jno.lora.extending import adapted_layers, show_path

from .._errors import MisfitError, Problems
from .._names import HEAD, PREFIX, Rename, is_embedding, peft_name
from ..model.layouts import layout_of
from ..model.ties import Ties
from ..types import TYPE_OF, Written
from ._wrappers import trained_in_base, write_adapter, written_base


class WrittenAdapters:
    """The adapters of a model for PEFT.

    - `modules`: by PEFT's names; `tensors`: by the names in the file.
    - `ties_adapter`: whether PEFT must adapt the head that is tied to an embedding.
    - `has_bias`: whether biases of adapted layers changed.
    - `problems`: a line for each adapter that PEFT cannot have.
    """

    def __init__(self, model: PyTree, trainable: PyTree | None, rename: Rename, ties: Ties):
        self.problems = Problems()
        self.modules: dict[str, Written] = {}
        self.tensors: dict[str, Any] = {}
        self.ties_adapter = self.has_bias = False
        self._rename = rename
        self._ties = ties
        flags = () if trainable is None else (trainable,)
        # With the arrays that adapters share; not for the flags, which have the model's structure.
        resolved = (wrapper for _, wrapper in adapted_layers(resolve(model)))
        layers = zip(adapted_layers(model, *flags), resolved, strict=True)
        for (path, wrapper, *trains), whole in layers:
            with self.problems.of(f"{show_path(path)} ({type(wrapper).__name__})"):
                trained = trained_in_base(trains[0]) if trains else frozenset()
                for written in write_adapter(whole, ties.outer(path)):
                    self._add(written, wrapper, trained, ties.of(path))

    def _add(
        self, written: Written, wrapper: LoRAWrapper, trained: frozenset[str], is_tied: bool | None
    ) -> None:
        """Add an adapter, and arrays of its layer that train, or that `load_peft` read."""
        module = peft_name(written.adapter.path, self._rename)
        if module in self.modules:
            path = self.modules[module].adapter.path
            raise MisfitError(f"it has PEFT's name {module!r}, as {path!r} has")
        self.modules[module] = written
        self._put(module, written.tensors)
        arrays = written_base(wrapper, written.adapter.index, trained)
        kind = TYPE_OF[written.adapter.variant]
        if "bias" in arrays and not kind.bias:
            raise MisfitError(
                f"its bias differs from the base model's, and PEFT's {kind.name} keeps that bias"
            )
        self.has_bias |= "bias" in arrays
        self._put(f"{module}.base_layer", arrays)
        if is_tied is not False:
            self._tie(module, written, wrapper, is_tied)

    def _tie(
        self, module: str, written: Written, wrapper: LoRAWrapper, is_tied: bool | None
    ) -> None:
        """Let the head that reads an adapted table have the update as well, as it has here."""
        layout = layout_of(wrapper.base)
        if layout is None or layout.kind != "embedding":
            raise MisfitError(
                "other layers read its weight through eqx.nn.Shared, and PEFT adapts this layer "
                "alone. Let the embedding hold the weight"
            )
        if written.adapter.variant not in ("lora", "rslora") or not is_embedding(module):
            raise MisfitError(_NOT_TIED if is_tied else _MAY_BE_TIED)
        self.ties_adapter = True
        A, B = (written.tensors[f"lora_embedding_{letter}"] for letter in "AB")
        self._put(HEAD, {"lora_A.weight": B.T, "lora_B.weight": A.T})

    def _put(self, module: str, tensors: Mapping[str, Any]) -> None:
        self.tensors |= {f"{PREFIX}{module}.{name}": tensor for name, tensor in tensors.items()}


_LIMIT = (
    "PEFT lets a head see the adapter of its embedding only for LoRA and rsLoRA on an embedding of "
    "the name 'embed_tokens' (`ensure_weight_tying`)"
)
_NOT_TIED = (
    f"a head reads the adapted table. {_LIMIT}. Train it on lookups alone: `untie` the embedding "
    "before it is adapted"
)
_MAY_BE_TIED = (
    f"a head may read the adapted table, which a model does not tell. {_LIMIT}. If no head reads "
    "it, say tied=False; if one does, `untie` the embedding before it is adapted"
)
