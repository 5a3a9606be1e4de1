"""Adapter classes: a method on a kind of layer."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from jno.lora import LoRAWrapper
from jno.lora.extending import over_stack
from jno.lora.parts import ClassesByName, LazyAdapter

from ._layer_kind import LayerKind
from ._matrices_layer import COMMON_FIELDS, MatricesLayer, sum_of, unwrapped, with_products
from ._method import Method
from .layers.linear import LinearLayer
from .methods import METHODS

# Facts of a method that hold for each of several matrices.
_FACTS = (
    *("adapter_fields", "optional_fields", "factor_sides", "rank_gate", "rank_axes"),
    *("needs", "about"),
)


def made_when_named(
    namespace: dict[str, Any], adapters: ClassesByName
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a module that has `adapters`, which are made when named.

    The module `adapters.py` of a plugin, whose hook `jno_lora_wrappers` returns
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

    A class is made when it is read.

    **Arguments:**

    - `kind`: the kind of layer. Its class name ends in `Layer`.
    - `module`: the `__name__` of the module that will hold the classes:
        `globals().update(adapters_for(MyLayer, __name__))`, or as `made_when_named`
        shows.
    - `methods`: by default all methods of the zoo.
    - `auto`: the method whose adapter takes part in `wrapper="auto"`.
    - `variant`: the variant of an adapter, where `{}` stands for the method's variant. A layer that
        the zoo or another plugin adapts needs a variant that names the layer, such as
        `"{}-embedding"`: what `wrapper="lora"` selects must not depend on the installed plugins.
    """
    suffix = kind.__name__.removesuffix("Layer")
    adapters: dict[str, LazyAdapter] = {}
    for method in METHODS if methods is None else methods:
        name = f"{method.__name__}{suffix}"
        facts = {"variant": variant.format(method.variant), "auto": method is auto}
        make = functools.partial(_join, method, kind, name, {"__module__": module, **facts})
        adapters[name] = LazyAdapter(make, name=name, module=module, **facts)
    return ClassesByName(adapters)


def _join(method: type[Method], kind: type[Any], name: str, body: dict[str, Any]) -> Any:
    if issubclass(kind, MatricesLayer):
        return _of_several(kind, method, name, body)
    return type(name, (method, kind), body)


def _of_several(
    kind: type[MatricesLayer], method: type[Method], name: str, body: Mapping[str, Any]
) -> Any:
    """The adapter class of `method` for a kind of layer with several matrices.

    It has the fields of the method on a linear layer, which is the adapter of one matrix.
    """
    of_one_matrix = _of_one_matrix(method)
    fields = [f.name for f in dataclasses.fields(of_one_matrix) if f.name not in COMMON_FIELDS]

    def construct(self: Any, *args: Any, **kwargs: Any) -> None:
        if kwargs.get("dropout"):
            raise ValueError(f"`dropout` cannot be used by {name}: its layers pass no key on")
        kind.__init__(self, *args, **kwargs)

    signature = inspect.signature(of_one_matrix.__init__)
    options = [p for n, p in signature.parameters.items() if n != "dropout"]
    setattr(construct, "__signature__", signature.replace(parameters=options))  # noqa: B010
    facts = {fact: getattr(method, fact) for fact in _FACTS}
    if method.penalty is not LoRAWrapper.penalty:
        facts["penalty"] = _penalty
    if of_one_matrix.unwrap is not LoRAWrapper.unwrap:  # its start changes the matrices
        facts["unwrap"] = _unwrap
    if of_one_matrix.low_rank_scale(1, 1.0) is not None:
        facts |= {"with_products": classmethod(with_products), "sum_of": classmethod(sum_of)}
    attributes = {
        "__annotations__": dict.fromkeys(fields, Any),
        "__doc__": inspect.getdoc(method),
        "__init__": construct,
        "method": method,
        "kind": kind,
        "of_one_matrix": of_one_matrix,
        **facts,
    }
    return type(name, (kind,), {**attributes, **body})


@functools.cache
def _of_one_matrix(method: type[Method]) -> Any:
    return type(f"{method.__name__}OfOneMatrix", (method, LinearLayer), {})


def _penalty(layer: MatricesLayer) -> Array:
    """The sum of the penalties of all matrices."""
    terms = [
        jnp.sum(over_stack(lambda a: a.penalty(), adapter.base.weight.ndim - 2)(adapter))
        for adapter in layer.adapters().values()
    ]
    return sum(terms[1:], terms[0])


def _unwrap(layer: MatricesLayer) -> eqx.Module:
    """The base with the matrices that it had before adapting."""
    return layer._with_linears(unwrapped)  # pyright: ignore[reportPrivateUsage]
