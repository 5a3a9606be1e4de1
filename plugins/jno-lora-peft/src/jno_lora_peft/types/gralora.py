"""GraLoRA: a grid of blocks of low rank; LoRA if it has a LoRA of all inputs beside it."""

import numpy as np

from ._type import Adapter, Converted, MisfitError, Module, Setting, Type, Written


class GRALORA(Type):
    """GraLoRA; LoRA if it is a hybrid."""

    tensors = r"gralora_[AB](?:_general\.weight)?"
    rank = Setting("r", 32)
    alpha = Setting("alpha", 64)
    settings = "gralora_k hybrid_r gralora_dropout"
    bias = "gralora_only"

    def read(self, m: Module) -> Converted:
        outputs, inputs = m.layout.matrix
        k, hybrid = m.settings.get("gralora_k", 2), m.settings.get("hybrid_r", 0)
        if outputs % k or inputs % k or m.rank % k:
            raise MisfitError(f"gralora_k is {k}, and must divide {outputs}, {inputs} and {m.rank}")
        shapes = {"gralora_A": (k, inputs // k, m.rank), "gralora_B": (k, m.rank, outputs // k)}
        if not hybrid:
            names = {letter: (f"gralora_{letter}", shapes[f"gralora_{letter}"]) for letter in "AB"}
            return m.as_method("gralora", names)
        general = {"A": (hybrid, inputs), "B": (outputs, hybrid)}
        general = {f"gralora_{letter}_general.weight": shape for letter, shape in general.items()}
        A, B, general_A, general_B = m.take(shapes | general)
        A = A.reshape(k, inputs // k, k, m.rank // k)
        B = B.reshape(k, k, m.rank // k, outputs // k)
        U = np.einsum("nqjs,jnsp->jpnq", A, B).reshape(outputs, inputs) + general_B @ general_A
        return m.update(U, m.alpha / (m.rank + hybrid))

    def write(self, adapter: Adapter) -> Written:
        k = len(adapter.state["A"])
        if adapter.layout.outputs % k or adapter.layout.inputs % k:
            raise MisfitError(f"PEFT's {k} blocks must divide the layer's inputs and outputs")
        tensors = {f"gralora_{letter}": adapter.state[letter] for letter in "AB"}
        return adapter.written(tensors, {"gralora_k": k, "hybrid_r": 0})
