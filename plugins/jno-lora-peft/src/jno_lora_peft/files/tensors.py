"""The tensors of a file, by the modules of the model."""

import dataclasses
import re
from collections.abc import Iterable, Mapping

import numpy as np

from .._names import PREFIX

ByModule = dict[str, dict[str, np.ndarray]]

# Rows of an embedding that were trained alone: of a type for them, or beside LoRA.
_ROWS = re.compile(r"(?:(.*)\.)?trainable_tokens_delta")
# Where PEFT keeps the module that it wrapped, or the trained copy.
_WRAPPED = re.compile(r"(^|\.)(base_layer|modules_to_save|ln_tuning_layers)(?=\.)")


@dataclasses.dataclass(frozen=True)
class Tensors:
    """The tensors of a file, by the names that the modules have in the model without PEFT.

    - `adapters`, `plain`: tensors of adapters, and whole arrays: `{module: {name: tensor}}`.
    - `base`: the arrays of layers in adapters, which PEFT writes for embeddings and biases.
    - `rows`: of embeddings: `{module: {"weight": rows}}`; `shared`: of all modules, by whole names.
    """

    adapters: ByModule = dataclasses.field(default_factory=dict)
    plain: ByModule = dataclasses.field(default_factory=dict)
    base: ByModule = dataclasses.field(default_factory=dict)
    rows: ByModule = dataclasses.field(default_factory=dict)
    shared: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def without(self, modules: Iterable[str]) -> "Tensors":
        left_out = frozenset(modules)
        adapters, plain, base, rows = (
            {module: tensors for module, tensors in table.items() if module not in left_out}
            for table in self._tables
        )
        return Tensors(adapters, plain, base, rows, self.shared)

    @property
    def modules(self) -> list[str]:
        return [*dict.fromkeys(module for table in self._tables for module in table)]

    @property
    def _tables(self) -> tuple[ByModule, ...]:
        return self.adapters, self.plain, self.base, self.rows


def by_module(tensors: Mapping[str, np.ndarray], of_adapter: str, shared: str) -> Tensors:
    """The tensors of a file, sorted by module, by regular expressions for names of tensors."""
    adapter_pattern, shared_pattern = re.compile(rf"(?:(.*)\.)?({of_adapter})"), re.compile(shared)
    result = Tensors()
    for key, tensor in tensors.items():
        if shared_pattern.fullmatch(key):
            result.shared[key] = tensor
            continue
        name = key.removeprefix(PREFIX)
        if match := adapter_pattern.fullmatch(name):
            array = match[2].removesuffix(".weight") if "magnitude" in match[2] else match[2]
            result.adapters.setdefault(match[1] or "", {})[array] = tensor
        elif match := _ROWS.fullmatch(name):
            module = (match[1] or "").removesuffix("token_adapter").removesuffix(".")
            result.rows[module] = {"weight": tensor}
        elif ".original_module." not in f".{name}":  # which PEFT keeps beside the trained module
            module, _, array = _WRAPPED.sub("", name).removeprefix(".").rpartition(".")
            table = result.base if name.endswith(f"base_layer.{array}") else result.plain
            table.setdefault(module, {})[array] = tensor
    return result
