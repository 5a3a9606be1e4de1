"""`Shared`: a field of an adapter for an array that many adapters use."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
from jaxtyping import Array, PRNGKeyArray

from .._errors import WrapperError
from .calling import call_or_trace


class Box:
    """An array in a static field. Two boxes are equal if they contain the same array object.

    So a function that was compiled for a resolved model is reused if the model is resolved again.
    """

    def __init__(self, array: Array):
        self.array = array

    def __eq__(self, box: object) -> bool:
        return isinstance(box, Box) and self.array is box.array

    def __hash__(self) -> int:
        return id(self.array)


class Shared(eqx.Module):
    """A field for an array that all adapters with a `Shared` of the same name use.

    The constructor of an adapter sets the field, which may be a dict of `Shared`, and `__call__`,
    `merge` and the like read `self.field.array`. The array is made once, when a model is adapted.

    If `adapter_fields` leaves the field out, the array is frozen. Then every adapter has the same
    `jax.Array`, one buffer in memory, and a stack of layers has a copy for each layer. If
    `adapter_fields` names the field, the first adapter keeps the array as the leaf that is trained.
    Other adapters, and stacked layers that a scan runs, get the array when
    `jno.lora.resolve(model)` is called in the loss, so its gradient is the sum over all adapters.

    **Arguments:**

    - `name`: the array's name, unique in the model. Put the shape into the name if layers of
        different sizes need different arrays.
    - `shape`: the least shape that this adapter needs. The array has the largest size that any
        adapter needs along each axis, so an adapter reads a slice (`array[:, :inputs]`).
    - `make`: `make(key, shape)` gives the first values. Only the first adapter's `make` is called,
        once.
    """

    # The array is kept here, as a leaf, or lent by another adapter in a resolved model, or neither,
    # in a model that must be resolved.
    value: Array | None
    name: str = eqx.field(static=True)
    shape: tuple[int, ...] = eqx.field(static=True)
    # `None` once the array exists: functions such as `partial` differ from adapter to adapter, and
    # programs would be compiled for each adapter.
    make: Callable[[PRNGKeyArray, tuple[int, ...]], Array] | None = eqx.field(static=True)
    held: Box | None = eqx.field(static=True)
    _package: str = eqx.field(static=True, repr=False)  # that defines `make`

    def __init__(
        self,
        name: str,
        shape: tuple[int, ...],
        make: Callable[[PRNGKeyArray, tuple[int, ...]], Array],
    ):
        self.name, self.shape, self.make = name, tuple(shape), make
        self.value = self.held = None
        function: Any = make
        while isinstance(function, functools.partial):
            function = function.func
        self._package = getattr(function, "__module__", "").partition(".")[0]

    @property
    def array(self) -> Array:
        """The array. **Raises:** `WrapperError` if the model must be resolved."""
        array = array_in(self)
        # A scan over a stack of layers may slice a trained array.
        if array is None or array.shape != self.shape:
            raise WrapperError(
                f"This adapter shares the array {self.name!r} with other adapters, and does not "
                "hold it: the array is trained, and the first adapter keeps it. Hand it to every "
                "adapter where the model is called, in the loss:\n"
                "    model = jno.lora.resolve(eqx.combine(trainable, frozen))\n"
                "(`net(x)` and `merge_lora` do so themselves. An adapter that was built by hand "
                "gets new arrays by `jno.lora.resolve(adapter, key=key)`.)"
            )
        return array


def array_in(shared: Shared) -> Any:  # of a mask, a bool
    """The array, if this adapter has it, without the axes that a stack adds to it."""
    array = shared.value if shared.held is None else shared.held.array
    stack = getattr(array, "ndim", 0) - len(shared.shape)
    return call_or_trace(lambda x: x[(0,) * stack], array) if stack > 0 else array


def kept(shared: Shared, array: Any, **changes: Any) -> Shared:
    """`shared` in an adapter that keeps the array; with `None`, in an adapter that lacks it."""
    return replaced(shared, value=array, held=None, **changes)


def lent(shared: Shared, array: Array) -> Shared:
    """`shared` in an adapter of a resolved model, whose array is no leaf."""
    return replaced(shared, value=None, held=Box(array))


def replaced(shared: Shared, **changes: Any) -> Shared:
    """`shared` with other fields."""
    copy = object.__new__(Shared)
    for name, value in {**vars(shared), **changes}.items():
        object.__setattr__(copy, name, value)
    return copy


def is_shared(node: object) -> bool:
    """Whether `node` is a `Shared`."""
    return issubclass(type(node), Shared)


def shared_fields(adapter: object) -> Iterator[tuple[str, Shared]]:
    """Each `Shared` that is a field of `adapter`, or is in a dict there, with the field's name."""
    for name, value in vars(adapter).items():
        for item in value.values() if type(value) is dict else (value,):
            if is_shared(item):
                yield name, item
