"""C3A: circular convolutions of blocks."""

from ._type import Adapter, Converted, Module, Setting, Type, Written


def _read(m: Module) -> Converted:
    kernel = m.tensors.get("c3a_kernel")
    blocks = (0, 0) if kernel is None else kernel.shape[:2]
    return m.as_method("c3a", {"kernel": ("c3a_kernel", (*blocks, m.rank))})


def _write(adapter: Adapter) -> Written:
    return adapter.written({"c3a_kernel": adapter.state["kernel"]}, {})


C3A = Type(
    "C3A",
    tensors="c3a_kernel",
    reader=_read,
    writer=_write,
    rank=Setting("block_size", 256, "block_size_pattern", by_name=True),
    bias="c3a_only",
)
