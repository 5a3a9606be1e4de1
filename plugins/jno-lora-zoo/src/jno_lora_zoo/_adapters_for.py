"""Adapter classes: a method on a kind of layer."""

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, cast

from jno.lora import LoRAWrapper, WrapperError
from jno.lora.extending import ClassesByName, LazyAdapter

from ._layer_kind import LayerKind
from ._matrices_layer import MatricesLayer
from ._method import Method
from ._per_matrix import per_matrix
from .methods import METHODS


def made_when_named(
    namespace: dict[str, Any], adapters: ClassesByName
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a module whose `adapters` are made on first access.

    For example in the module `adapters.py` of a plugin, whose hook `jno_lora_wrappers` returns
    `ADAPTERS.data.values()`:

    ```python
    ADAPTERS = adapters_for(MyLayer, __name__) | adapters_for(MyOtherLayer, __name__)
    __getattr__, __dir__ = made_when_named(globals(), ADAPTERS)
    __all__ = list(ADAPTERS)
    ```

    **Arguments:** `namespace`: the `globals()` of the module.
    """

    def get(name: str) -> Any:
        if name in adapters:
            return adapters[name]
        raise AttributeError(f"module {namespace['__name__']!r} has no attribute {name!r}")

    return get, lambda: [*namespace, *adapters]


def adapters_for(
    kind: type[LayerKind] | type[MatricesLayer],
    module: str,
    *,
    methods: Iterable[type[Method]] | None = None,
    auto: type[Method] | None = None,
    variant: str = "{}",
) -> ClassesByName:
    """The adapters of all methods for one kind of layer, by name: `DoRAConv` for `ConvLayer`.

    Each class is made on first access.

    **Arguments:**

    - `kind`: the kind of layer. Its class name ends in `Layer`.
    - `module`: the `__name__` of the module that will contain the classes:
        `globals().update(adapters_for(MyLayer, __name__))`, or as `made_when_named` shows.
    - `methods`: by default all methods of the zoo.
    - `auto`: the method whose adapter `wrapper="auto"` may select.
    - `variant`: the variant of an adapter, with `{}` for the method's variant. If the zoo or
        another plugin adapts the layer too, the variant must name the layer, such as
        `"{}-embedding"`, because the choice of `wrapper="lora"` must not depend on the installed
        plugins.

    **Raises:** (on first access) `WrapperError` if the kind or a method lacks a required member.
    """
    suffix = kind.__name__.removesuffix("Layer")
    adapters: dict[str, LazyAdapter] = {}
    for method in METHODS if methods is None else methods:
        name = f"{method.__name__}{suffix}"
        facts = {"variant": variant.format(method.variant), "auto": method is auto}
        make = functools.partial(_join, method, kind, name, {"__module__": module, **facts})
        adapters[name] = LazyAdapter(make, name=name, module=module, **facts)
    return ClassesByName(adapters)


def _join(
    method: type[Method],
    kind: type[LayerKind] | type[MatricesLayer],
    name: str,
    body: dict[str, object],
) -> type[LoRAWrapper]:
    base = per_matrix(method) if issubclass(kind, MatricesLayer) else method
    adapter = cast(Any, type(name, (base, kind), body))
    # An abstract class would vanish without a word, because `adapters_defined_in` takes it for a
    # method or a kind. `jno-lora plugins` shows the first line.
    members = sorted(adapter.__abstractmethods__)
    if missing := [f"`{member}`: {inspect.getdoc(getattr(adapter, member))}" for member in members]:
        makers = f"{kind.__name__} and {method.__name__}"
        raise WrapperError(f"{name} is not complete. {makers} lack {'; '.join(missing)}")
    return adapter
