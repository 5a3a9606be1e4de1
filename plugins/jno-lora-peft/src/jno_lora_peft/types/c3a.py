"""C3A: circular convolutions of blocks."""

from ._type import Adapter, Converted, Module, Setting, Type, Written


class C3A(Type):
    """C3A."""

    tensors = "c3a_kernel"
    rank = Setting("block_size", 256, "block_size_pattern", by_name=True)
    bias = "c3a_only"

    def read(self, m: Module) -> Converted:
        *blocks, _ = m.shape_of("c3a_kernel", 3)
        return m.as_method("c3a", {"kernel": ("c3a_kernel", (*blocks, m.rank))})

    def write(self, adapter: Adapter) -> Written:
        return adapter.written({"c3a_kernel": adapter.state["kernel"]}, {})
