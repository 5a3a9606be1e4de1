"""BOFT: butterfly factors. PEFT rotates by the transpose of each block."""

from ._shared import block_settings
from ._type import Adapter, Converted, MisfitError, Module, Modules, Type, Written


class BOFT(Type):
    tensors = "boft_[Rs]"
    settings = "boft_block_size boft_block_num boft_dropout boft_n_butterfly_factor"
    bias = "boft_only"

    def read(self, m: Module) -> Converted:
        outputs, inputs = m.layout.matrix
        R = m.tensors.get("boft_R")
        factors, size = (len(R), R.shape[-1]) if R is not None and R.ndim == 4 else (0, 0)
        if size < 1 or inputs % size:
            raise MisfitError(f"its blocks are of {size} inputs, and the layer has {inputs}")
        blocks, s = m.take(
            {"boft_R": (factors, inputs // size, size, size), "boft_s": (outputs, 1)}
        )
        return Converted("boft", size, 1.0, {"Q_blocks": blocks.swapaxes(2, 3), "s": s[:, 0]})

    def write(self, adapter: Adapter) -> Written:
        blocks = adapter.state["Q_blocks"]
        factors, count, size, _ = blocks.shape
        if count * size != adapter.layout.inputs:
            inputs = adapter.layout.inputs
            raise MisfitError(
                f"PEFT's blocks must divide the {inputs} inputs, and these are {count} of {size}"
            )
        tensors = {"boft_R": blocks.swapaxes(2, 3), "boft_s": adapter.state["s"][:, None]}
        return adapter.written(tensors, {"boft_n_butterfly_factor": factors}, rank=size)

    def common(self, modules: Modules) -> dict[str, int]:
        return block_settings(modules, "boft_block_size", "boft_block_num")
