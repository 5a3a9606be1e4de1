"""Adapter classes: a method on a kind of layer."""

from collections.abc import Iterable
from typing import Any

from ._layer_kind import LayerKind
from ._matrices_layer import MatricesLayer
from ._method import Method
from .methods import METHODS


def adapters_for(
    kind: type[LayerKind] | type[MatricesLayer],
    module: str,
    *,
    methods: Iterable[type[Method]] | None = None,
    auto: type[Method] | None = None,
    variant: str = "{}",
    former_variant: str | None = None,
) -> dict[str, Any]:
    """The adapters of all methods for one kind of layer, by name: `DoRAConv` for `ConvLayer`.

    **Arguments:**

    - `kind`: the kind of layer. Its class name ends in `Layer`.
    - `module`: the `__name__` of the module that will hold the classes:
        `globals().update(adapters_for(MyLayer, __name__))`.
    - `methods`: by default all methods of the zoo.
    - `auto`: the method whose adapter takes part in `wrapper="auto"`.
    - `variant`: the variant of an adapter, where `{}` stands for the method's variant. A layer that
        the zoo or another plugin adapts needs a variant that names the layer, such as
        `"{}-embedding"`: what `wrapper="lora"` selects must not depend on the installed plugins.
    - `former_variant`: the variant that the adapters had in an earlier release, if any, in the same
        form. It still finds them, with a warning.
    """
    suffix = kind.__name__.removesuffix("Layer")
    adapters: dict[str, Any] = {}
    for method in METHODS if methods is None else methods:
        name = f"{method.__name__}{suffix}"
        body = {"__module__": module, "auto": method is auto}
        body["variant"] = variant.format(method.variant)
        if former_variant is not None:
            body["former_variant"] = former_variant.format(method.variant)
        if issubclass(kind, MatricesLayer):
            adapters[name] = kind.for_method(method, name, body)
        else:
            adapters[name] = type(name, (method, kind), body)
    return adapters
