"""DeLoRA: an update of normalised components with a trained strength."""

from ._type import R_PATTERN, Adapter, Converted, Module, Type, Written


class DELORA(Type):
    """DeLoRA."""

    tensors = "delora_(?:A|B|lambda|w_norm)"
    rank = R_PATTERN
    settings = "delora_lambda lambda_pattern module_dropout"
    bias = "delora_only"

    def read(self, m: Module) -> Converted:
        (outputs, inputs), r = m.layout.matrix, m.rank
        names = {
            "lora_A": ("delora_A", (r, inputs)),
            "lora_B": ("delora_B", (outputs, r)),
            "strength": ("delora_lambda", (1,)),
            "norms": ("delora_w_norm", (inputs,)),
        }
        adapter = m.as_method("delora", names)
        return adapter.with_arrays(strength=adapter.state["strength"].reshape(()))

    def write(self, adapter: Adapter) -> Written:
        state = adapter.state
        tensors = {"delora_A": state["lora_A"], "delora_B": state["lora_B"]}
        tensors |= {"delora_lambda": state["strength"].reshape(1), "delora_w_norm": state["norms"]}
        return adapter.written(tensors, {})
