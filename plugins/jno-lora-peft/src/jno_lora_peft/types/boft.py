"""BOFT: butterfly factors. PEFT rotates by the transpose of each block."""

from ._shared import block_settings
from ._type import Adapter, Converted, MisfitError, Module, Modules, Type, Written


class BOFT(Type):
    """BOFT."""

    tensors = "boft_[Rs]"
    settings = "boft_block_size boft_block_num boft_dropout boft_n_butterfly_factor"
    bias = "boft_only"

    def read(self, m: Module) -> Converted:
        outputs, inputs = m.layout.matrix
        factors, _, _, size = m.shape_of("boft_R", 4)
        if inputs % size:
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
            raise MisfitError(f"{count} blocks of {size} are not the {inputs} inputs, as in PEFT")
        tensors = {"boft_R": blocks.swapaxes(2, 3), "boft_s": adapter.state["s"][:, None]}
        return adapter.written(tensors, {"boft_n_butterfly_factor": factors}, rank=size)

    def common(self, modules: Modules) -> dict[str, int]:
        return block_settings(modules, "boft_block_size", "boft_block_num")
