"""`Shared`: the field of an adapter whose array many adapters use, and which exists once."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
from jaxtyping import Array, PRNGKeyArray

from .._errors import WrapperError


class Box:
    """An array in a static field. Boxes of one array object are equal, and those of others differ.

    So a function that was compiled for a resolved model is found again if the model is resolved
    again.
    """

    def __init__(self, array: Array):
        self.array = array

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Box) and self.array is other.array

    def __hash__(self) -> int:
        return id(self.array)


class Shared(eqx.Module):
    """A field that stands for one array, used by every adapter with a `Shared` of this name.

    The constructor of an adapter sets the field, and `__call__`, `merge` and the like read
    `self.field.array`. When a model is adapted, the array is made once and kept by the first of the
    adapters, where it is trained if `adapter_fields` names the field. The others get it when
    `jno.lora.resolve(model)` is called in the loss, so its gradient is the sum over all of them.

    **Arguments:**

    - `name`: of the array, one for the whole model. Put the shape into it if layers of other
        sizes need another array.
    - `shape`: the least shape that this adapter needs. The array has the largest size that any
        adapter needs along each axis, so an adapter reads its part (`array[:, :inputs]`).
    - `make`: `make(key, shape)` gives the first values. It is called once, by that of the first
        adapter, and dropped when the array exists.
    """

    value: Array | None  # of the adapter that keeps the array
    name: str = eqx.field(static=True)
    shape: tuple[int, ...] = eqx.field(static=True)
    # `None` once the array exists: functions such as `partial` differ from adapter to adapter, and
    # a function compiled for the one would be compiled anew for the other.
    make: Callable[[PRNGKeyArray, tuple[int, ...]], Array] | None = eqx.field(static=True)
    held: Box | None = eqx.field(static=True)

    def __init__(
        self,
        name: str,
        shape: tuple[int, ...],
        make: Callable[[PRNGKeyArray, tuple[int, ...]], Array],
    ):
        self.name, self.shape, self.make = name, tuple(shape), make
        self.value = self.held = None

    @property
    def array(self) -> Array:
        """The array. **Raises:** `WrapperError` if the model was not resolved."""
        found = self.value if self.held is None else self.held.array
        # A scan over a stack of layers gives a slice of what the first one keeps.
        if found is None or found.shape != self.shape:
            raise WrapperError(
                f"The array {self.name!r} is shared by several adapters and kept once, by the "
                "first of them. Hand it to all of them where the model is called, in the loss:\n"
                "    model = jno.lora.resolve(eqx.combine(trainable, frozen))\n"
                "(`net(x)` and `merge_lora` do so themselves. An adapter that was built by hand "
                "gets new arrays by `jno.lora.resolve(adapter, key=key)`.)"
            )
        return found


def is_shared(node: Any) -> bool:
    """Whether `node` is a `Shared`."""
    return issubclass(type(node), Shared)


def replaced(shared: Shared, **changes: Any) -> Shared:
    """`shared` with other fields."""
    made = object.__new__(Shared)
    for name, value in {**vars(shared), **changes}.items():
        object.__setattr__(made, name, value)
    return made
