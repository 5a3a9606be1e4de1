"""Poly: skills that the weights of a task mix, as `Poly` of jno-lora-routed."""

import numpy as np

from ._type import Adapter, Converted, Module, R, Type, Written

_LOGITS = "poly_router.module_logits"


class POLY(Type):
    """Poly; `with_task` chooses the task."""

    tensors = r"poly_lora_[AB]|poly_router\.module_logits"
    rank = R
    settings = "n_tasks n_skills n_splits"
    only = (("poly_type", "poly", "PEFT has no other type"),)

    def read(self, m: Module) -> Converted:
        """PEFT's factors lie transposed, and its scale is `1 / r`."""
        splits, skills, *_ = m.shape_of("poly_lora_A", 4)
        tasks, _ = m.shape_of(_LOGITS, 2)
        (outputs, inputs), rank = m.layout.matrix, m.rank
        A, B, logits = m.take(
            {
                "poly_lora_A": (splits, skills, inputs // splits, rank),
                "poly_lora_B": (splits, skills, rank, outputs // splits),
                _LOGITS: (tasks, splits * skills),
            }
        )
        state = {"lora_A": A.swapaxes(2, 3), "lora_B": B.swapaxes(2, 3), "router/logits": logits}
        state["settings/task"] = np.zeros((), np.int32)
        return Converted("poly", rank, 1.0, state)

    def write(self, adapter: Adapter) -> Written:
        A, B, logits = (adapter.state[name] for name in ("lora_A", "lora_B", "router/logits"))
        splits, skills, rank, _ = A.shape
        tensors = {
            "poly_lora_A": A.swapaxes(2, 3),
            "poly_lora_B": (np.float32(adapter.alpha) * B).swapaxes(2, 3),
            _LOGITS: logits,
        }
        settings = {"n_tasks": len(logits), "n_skills": skills, "n_splits": splits}
        return adapter.written(tensors, {**settings, "poly_type": "poly"}, rank=rank)
