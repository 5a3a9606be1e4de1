"""Arrays that many adapters use: made once, kept by the first adapter, handed to every adapter.

An adapter names such an array in a field of type `Shared`. The tree of the model holds the values
in one leaf, so that masks, optimisers, counts and shardings see one array.
"""

import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from ._contract import (
    Box,
    LoRAWrapper,
    Shared,
    authors_of,
    expect_model,
    is_adapter,
    is_shared,
    replaced,
    shared_fields,
)
from ._errors import SelectionError
from ._paths import show_array, stable_hash
from ._sharding import replicated_beside

M = TypeVar("M")


def resolve(model: M, *, key: PRNGKeyArray | None = None) -> M:
    """`model`, in which every adapter holds the arrays that it shares.

    Call it where the model is called, inside the loss and inside `jit`:

        def loss(trainable, frozen, batch):
            model = jno.lora.resolve(eqx.combine(trainable, frozen))
            ...

    Calling the model itself raises an error (in a scan over a stack of layers, JAX says that it
    "got values with different leading axis sizes"). The arrays are not copied. The gradient with
    respect to `trainable` is the sum over all adapters. Use the result for calls only: train, save
    and merge the model that was given. A model without shared arrays is returned unchanged.

    **Arguments:**

    - `model`: a pytree, adapted or not.
    - `key`: makes arrays that do not exist yet, around an adapter that was built by hand.

    **Raises:** `SelectionError` if an array is missing; if two arrays have the same name (resolve
    two models in one tree apart); or if `model` is a `Net` or a set.
    """
    expect_model(model, "resolve")
    if key is not None:
        model = with_shared_arrays(model, key=key)
    boxes = {name: Box(array) for name, array in shared_arrays(model).items()}

    def hand_over(shared: Shared) -> Shared:
        if shared.held is not None:
            return shared
        return replaced(shared, value=None, held=_array_of(shared, boxes))

    return _on_shared(hand_over, model)


def filler(model: Any) -> Callable[[LoRAWrapper], LoRAWrapper]:
    """A function that gives an adapter of `model` a copy of each shared array, to merge it alone.

    For a stacked layer, the copy has the axes of the stack.
    """
    arrays: dict[str, Array] = {}

    def fill(adapter: LoRAWrapper) -> LoRAWrapper:
        if not uses_shared(adapter):
            return adapter
        if not arrays:
            arrays.update(shared_arrays(model))
        ndim = type(adapter).stack_ndim(adapter.base)
        leaves = jax.tree.leaves(eqx.filter(adapter.base, eqx.is_array)) if ndim else ()
        stack = leaves[0].shape[:ndim] if leaves else ()

        def copy(shared: Shared) -> Shared:
            array = _array_of(shared, arrays) if shared.held is None else shared.held.array
            if array.ndim == len(shared.shape):  # else a copy already
                array = jnp.broadcast_to(array, (*stack, *array.shape))
            return replaced(shared, value=array, held=None)

        return _on_shared(copy, adapter)

    return fill


def with_shared_arrays(model: M, *, key: PRNGKeyArray) -> M:
    """`model` in which every array that its adapters share exists. `key` makes new arrays.

    **Raises:** `SelectionError` if an array exists and is too small for an adapter, or if adapters
    of different packages share it.
    """
    arrays = shared_arrays(model)
    first_users: dict[str, tuple[Any, Shared]] = {}
    shapes: dict[str, tuple[int, ...]] = {}  # with room for every adapter's part
    for adapter, shared in _users(model):
        name, shape = shared.name, shapes.get(shared.name, shared.shape)
        first, first_shared = first_users.setdefault(name, (adapter, shared))
        if authors_of(first, first_shared).isdisjoint(authors_of(adapter, shared)):
            raise SelectionError(
                f"{type(first).__name__} of {type(first).__module__} and {type(adapter).__name__} "
                f"of {type(adapter).__module__} share an array {name!r}, but different packages "
                "define them. Their authors must choose different names."
            )
        if len(shape) != len(shared.shape):
            raise SelectionError(
                f"Two adapters share an array {name!r}, but need the shapes {shape} and "
                f"{shared.shape}. Their authors must choose different names."
            )
        shapes[name] = tuple(map(max, shape, shared.shape))
    for name, shape in shapes.items():
        if name not in arrays:
            adapter, shared = first_users[name]
            if shared.make is None:  # the array was taken away, and a new array would be wrong
                raise _missing(name)
            array = shared.make(jax.random.fold_in(key, stable_hash(name)), shape)
            arrays[name] = replicated_beside(adapter.base, array)
        elif arrays[name].shape != tuple(map(max, shape, arrays[name].shape)):
            raise SelectionError(
                f"The model has an array {name!r} of shape {arrays[name].shape} already, which its "
                f"adapters share, but the new adapters need {shape}. Adapt all of the layers in "
                "one call, or unwrap the adapters first."
            )
    return put_shared(model, arrays)


def put_shared(model: M, arrays: Mapping[str, Array]) -> M:
    """`model` in which the first adapter that uses each of `arrays` keeps it.

    An array that the model keeps already stays where it is.

    **Raises:** `SelectionError` if an adapter uses an array that neither `arrays` nor `model` has.
    """
    placed = {shared.name for _, shared in _users(model) if shared.value is not None}

    def put(shared: Shared) -> Shared:
        array = shared.value if shared.value is not None else _array_of(shared, arrays)
        stacked = array.ndim - len(shared.shape)  # sets that `stack_adapters` made
        is_small = stacked < 0 or any(map(operator.lt, array.shape[stacked:], shared.shape))
        if is_small or not jnp.issubdtype(array.dtype, jnp.inexact):
            raise SelectionError(
                f"The shared array {shared.name!r} is {show_array(array)}, but an adapter needs "
                f"floating numbers of the shape {shared.shape}."
            )
        keeps = shared.value is not None or shared.name not in placed
        placed.add(shared.name)
        return replaced(shared, value=array if keeps else None, shape=array.shape, make=None)

    arrays = {**arrays, **shared_arrays(model)}
    return _on_shared(put, model)


def without_shared(adapter: LoRAWrapper) -> tuple[LoRAWrapper, dict[str, Array]]:
    """`adapter` without the shared arrays that it keeps, and these arrays by name."""
    if not uses_shared(adapter):
        return adapter, {}
    bare = _on_shared(lambda shared: replaced(shared, value=None, held=None), adapter)
    return bare, shared_arrays(adapter)


def with_shared_values(mask: Any, adapter: LoRAWrapper, values: Mapping[str, Any]) -> Any:
    """`mask`, an adapter's tree of bools, with a bool where `adapter` keeps a shared array.

    - `values`: bools by the names of arrays. Without an entry, an array trains if `adapter_fields`
        names its field.
    """
    fields = {name: getattr(adapter, name) for name, _ in shared_fields(adapter)}

    def bool_of(name: str, item: Shared) -> Shared:
        trains = values.get(item.name, name in type(adapter).adapter_fields)
        return replaced(item, value=None if item.value is None else trains)

    bools = [
        {
            key: bool_of(name, item) if is_shared(item) else getattr(mask, name)[key]
            for key, item in field.items()
        }
        if type(field) is dict
        else bool_of(name, field)
        for name, field in fields.items()
    ]
    where = lambda node: [getattr(node, name) for name in fields]  # noqa: E731
    return eqx.tree_at(where, mask, bools, is_leaf=_is_field)


def _is_field(node: Any) -> bool:
    return is_shared(node) or type(node) is dict


def shared_arrays(model: Any) -> dict[str, Any]:
    """The arrays that the adapters of `model` share, by name.

    **Raises:** `SelectionError` if two arrays have the same name.
    """
    arrays: dict[str, Any] = {}
    for _, shared in _users(model):
        if shared.value is not None:
            if shared.name in arrays:
                raise SelectionError(
                    f"There are two arrays {shared.name!r} in this tree, each shared by adapters: "
                    "the tree holds two models. Give each model alone."
                )
            arrays[shared.name] = shared.value
    return arrays


def names_shared_in(model: Any) -> set[str]:
    """The names of the shared arrays that adapters of `model` use."""
    return {shared.name for _, shared in _users(model)}


def uses_shared(adapter: LoRAWrapper) -> bool:
    """Whether a field of `adapter` is `Shared`."""
    return any(True for _ in shared_fields(adapter))


def is_resolved(adapter: LoRAWrapper) -> bool:
    """Whether `adapter` comes from a model that was resolved."""
    return any(shared.held is not None for _, shared in shared_fields(adapter))


def _users(model: Any) -> Iterator[tuple[Any, Shared]]:
    """Each `Shared` of `model`, with the adapter that uses it."""
    for node in jax.tree.leaves(model, is_leaf=is_adapter):
        if is_adapter(node):
            yield from ((node, shared) for _, shared in shared_fields(node))


def _on_shared(function: Callable[[Shared], Shared], tree: M) -> M:
    if not names_shared_in(tree):
        return tree
    return jax.tree.map(lambda x: function(x) if is_shared(x) else x, tree, is_leaf=is_shared)


def _array_of(shared: Shared, arrays: Mapping[str, Any]) -> Any:
    if shared.name in arrays:
        return arrays[shared.name]
    raise _missing(shared.name)


def _missing(name: str) -> SelectionError:
    return SelectionError(
        f"An adapter uses the shared array {name!r}, which is missing: another adapter of the same "
        "model keeps it. Give the whole model, or set."
    )
