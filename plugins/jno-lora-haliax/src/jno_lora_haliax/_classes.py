"""The layers of Haliax, recognised without importing Haliax."""

from typing import Any

from jno_lora_zoo import ByName


def haliax() -> Any:
    """Haliax itself. Whoever calls an adapter of one of its layers has imported it already."""
    import haliax  # pyright: ignore[reportMissingImports]

    return haliax


class HaliaxArray(metaclass=ByName):
    """`haliax.NamedArray`."""

    array: Any
    axes: Any
    dtype: Any

    names = frozenset({("haliax.core", "NamedArray")})


class HaliaxLinear(metaclass=ByName):
    """`haliax.nn.Linear` and its subclasses."""

    names = frozenset({("haliax.nn.linear", "Linear")})


class HaliaxEmbedding(metaclass=ByName):
    """`haliax.nn.Embedding` and its subclasses."""

    names = frozenset({("haliax.nn.embedding", "Embedding")})


class HaliaxConv(metaclass=ByName):
    """`haliax.nn.Conv` and its subclasses."""

    names = frozenset({("haliax.nn.conv", "Conv")})
