"""Stacks that PEFT has as one array of all experts (`target_parameters`)."""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from jno.lora import SelectionError

from .._errors import MisfitError
from .._names import show_index
from ..types import Written

_FACTORS = ("lora_A.weight", "lora_B.weight")


class ExpertArrays:
    """Which stacks are arrays of experts, and the tensors of these arrays.

    PEFT nests the adapters of one module in the order in which Torch's module defines its arrays.
    The order of the regular expressions is that order, since a model here does not know it.
    """

    def __init__(self, patterns: str | Sequence[str] | None):
        patterns = [patterns] if isinstance(patterns, str) else list(patterns or ())
        try:
            self._patterns = [re.compile(pattern) for pattern in patterns]
        except (re.error, TypeError) as err:
            raise SelectionError(
                f"target_parameters={patterns!r} must be regular expressions on paths: {err}"
            ) from err
        self._used: set[int] = set()
        self._by_module: dict[str, dict[int, tuple[str, Written]]] = {}

    def order(self, path: str) -> int | None:
        """The number of the first expression that matches a path."""
        numbers = (n for n, pattern in enumerate(self._patterns) if pattern.search(path))
        number = next(numbers, None)
        if number is not None:
            self._used.add(number)
        return number

    def check_used(self) -> None:
        """**Raises:** `SelectionError` for an expression that matches no adapter."""
        for n, pattern in enumerate(self._patterns):
            if n not in self._used:
                raise SelectionError(
                    f"target_parameters={pattern.pattern!r} matches no path of an adapter"
                )

    def add(self, name: str, order: int, written: Written) -> None:
        """Add an array by PEFT's name. **Raises:** `MisfitError` if it has no place in a module."""
        module, _, array = name.rpartition(".")
        if not module:
            raise MisfitError(
                f"PEFT adapts arrays of modules, and {name!r} is outside of all. Give it a name "
                "with `rename`, such as 'experts/up_proj'"
            )
        arrays = self._by_module.setdefault(module, {})
        if order in arrays:
            raise MisfitError(
                f"{arrays[order][0]!r} and {array!r} are arrays of one module, and match the same "
                "expression. Give an expression for each, in the order in which Torch's module "
                'defines them, such as target_parameters=["gate_up_proj$", "down_proj$"]'
            )
        arrays[order] = array, written

    @property
    def names(self) -> list[str]:
        arrays = self._by_module.items()
        return [f"{module}.{name}" for module, by in arrays for name, _ in by.values()]

    def tensors(self) -> dict[str, dict[str, np.ndarray]]:
        """The tensors by PEFT's names of the modules. The first array is wrapped first."""
        return {
            module + ".base_layer" * (len(arrays) - 1 - n): dict(arrays[order][1].tensors)
            for module, arrays in self._by_module.items()
            for n, order in enumerate(sorted(arrays))
        }


def joined(layers: Sequence[Written], path: str) -> list[Written]:
    """The adapters of each array: the factors of its experts, the last axis of the stack, in one.

    **Raises:** `MisfitError` if an adapter is more than two factors.
    """
    by_block: dict[tuple[int, ...], list[Written]] = {}
    for written in layers:
        if tuple(written.tensors) != _FACTORS:
            raise MisfitError(
                f"PEFT adapts arrays by LoRA alone, and this would be {', '.join(written.tensors)}"
            )
        by_block.setdefault(written.adapter.index[:-1], []).append(written)
    arrays: list[Written] = []
    for index, experts in by_block.items():
        A, B = ([np.asarray(x.tensors[name]) for x in experts] for name in _FACTORS)
        # Rows of `A` go expert by expert, columns of `B` rank by rank.
        factors = np.concatenate(A), np.stack(B, -1).reshape(len(B[0]), -1)
        where = f"{path}[{show_index(index)}]" if index else path
        adapter = dataclasses.replace(experts[0].adapter, path=where, index=index)
        tensors = dict(zip(_FACTORS, factors, strict=True))
        arrays.append(dataclasses.replace(experts[0], adapter=adapter, tensors=tensors))
    return arrays
