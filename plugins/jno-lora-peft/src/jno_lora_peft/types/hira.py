"""HiRA: the weight times `1 + B A`, number by number. PEFT has no scale."""

from ._methods import METHODS, factors
from ._type import Adapter, Converted, Module, Setting, Type, Written


class HIRA(Type):
    """HiRA."""

    tensors = "hira_(?:embedding_)?[AB]"
    layers = ("linear", "conv1d", "conv2d", "conv3d", "embedding")
    rank = Setting("r", 32)
    settings = "hira_dropout rank_pattern runtime_offload_base_weight"

    def read(self, m: Module) -> Converted:
        table = m.layout.pair("hira", m.rank)
        A, B = (tensor.reshape(len(tensor), -1) for tensor in m.take(dict(table.values())))
        if m.rank > min(m.layout.matrix):
            A, B = factors((B @ A).astype(A.dtype))
        return Converted("hira", len(A), float(len(A)), {"lora_A": A, "lora_B": B})

    def write(self, adapter: Adapter) -> Written:
        """Its scale goes into `B`."""
        A, B = adapter.state["lora_A"], adapter.state["lora_B"]
        scale = METHODS["hira"].scale_for(adapter.rank, adapter.alpha)
        arrays = {"lora_A": A, "lora_B": (B * scale).astype(B.dtype)}
        table = adapter.layout.pair("hira", adapter.rank)
        tensors = {name: arrays[field].reshape(shape) for field, (name, shape) in table.items()}
        return adapter.written(tensors, {})
