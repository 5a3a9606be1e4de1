"""Adapter classes: a method on a kind of layer."""

import types
from collections.abc import Iterable
from typing import Any

from ._layer_kind import LayerKind
from ._method import Method
from .methods import METHODS


def adapters_for(
    kind: type[LayerKind],
    module: str,
    *,
    methods: Iterable[type[Method]] | None = None,
    auto: type[Method] | None = None,
    variant: str = "{}",
) -> dict[str, Any]:
    """The adapter of each method for one kind of layer, by name.

    `DoRA` and `ConvLayer` make what `class DoRAConv(DoRA, ConvLayer): ...` would be.

    **Arguments:**

    - `kind`: the kind of layer. Its class name ends in `Layer`.
    - `module`: the `__name__` of the module that will hold the classes:
        `globals().update(adapters_for(MyLayer, __name__))`.
    - `methods`: by default all methods of the zoo.
    - `auto`: the method whose adapter takes part in `wrapper="auto"`.
    - `variant`: the variant of an adapter, where `{}` stands for that of the method.
    """
    suffix = kind.__name__.removesuffix("Layer")
    made: dict[str, Any] = {}
    for method in METHODS if methods is None else methods:
        name = f"{method.__name__}{suffix}"
        body = {
            "__module__": module,
            "auto": method is auto,
            "variant": variant.format(method.variant),
        }
        made[name] = types.new_class(
            name, (method, kind), exec_body=lambda ns, b=body: ns.update(b)
        )
    return made
