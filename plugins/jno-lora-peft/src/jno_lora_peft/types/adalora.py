"""AdaLoRA: `s B diag(E) A`. The components that AdaLoRA has pruned are not in the file."""

import dataclasses

from ._type import Adapter, Converted, Module, Setting, Type, Written


class ADALORA(Type):
    """AdaLoRA, with the components that are left."""

    tensors = "lora_[ABE]"
    rank = Setting("init_r", 12)
    alpha = Setting("lora_alpha", 8)
    settings = "target_r tinit tfinal deltaT beta1 beta2 orth_reg_weight total_step"
    bias = "lora_only"

    def read(self, m: Module) -> Converted:
        left, _ = m.shape_of("lora_A", 2)
        outputs, inputs = m.layout.matrix
        scale = (m.alpha if m.alpha > 0 else m.rank) / (m.rank + 1e-5)
        shapes = {"lora_A": (left, inputs), "lora_B": (outputs, left), "lora_E": (left, 1)}
        if 0 < left <= min(outputs, inputs):
            names = {name: (name, shape) for name, shape in shapes.items()}
            m = dataclasses.replace(m, rank=left, alpha=scale * left)
            adapter = m.as_method("adalora", names)
            return adapter.with_arrays(lora_E=adapter.state["lora_E"][:, 0])
        A, B, E = m.take(shapes)
        return m.low_rank((E * A, B), scale)

    def write(self, adapter: Adapter) -> Written:
        """PEFT divides by the rank and 1e-5."""
        r = adapter.rank
        tensors = {name: adapter.state[name] for name in ("lora_A", "lora_B")}
        tensors["lora_E"] = adapter.state["lora_E"][:, None]
        schedule = {"target_r": r, "total_step": 1, "tinit": 0, "tfinal": 0}
        return adapter.written(tensors, schedule, alpha=adapter.alpha * (r + 1e-5) / r)
