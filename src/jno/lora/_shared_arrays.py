"""Arrays that many adapters use, named in a field of type `Shared`, and made once.

A frozen array is a leaf of each adapter that uses it: the same `jax.Array`, one buffer in memory,
and for a stack of layers a copy with the axes of the stack, like every other array of the stack.
A trained array is a leaf of the first adapter alone, so that masks and optimisers see one array,
and `resolve` hands it to the other adapters.
"""

import functools
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray, PyTree

from ._contract.calling import is_traced
from ._contract.checks import expect_model
from ._contract.shared import Shared, array_in, is_shared, kept, lent, shared_fields
from ._contract.wrapper import LoRAWrapper, is_adapter, trainable_fields
from ._errors import SelectionError
from ._paths import show_array, stable_hash
from ._sharding import replicated_beside

M = TypeVar("M")


def resolve(model: M, *, key: PRNGKeyArray | None = None) -> M:
    """`model` with every shared array in each adapter that uses it, ready for calls.

    Models that train a shared array need this, because only the first adapter keeps it, in a stack
    of layers without the axis of the stack. Call it where the model is called, inside the loss and
    inside `jit`:

        def loss(trainable, frozen, batch):
            model = jno.lora.resolve(eqx.combine(trainable, frozen))
            ...

    Calling the model itself raises an error (in a scan over a stack of layers, JAX reports that it
    "got values with different leading axis sizes"). The arrays are not copied. The gradient with
    respect to `trainable` is the sum over all adapters. Use the result only for calls, and train
    the original model. A model without shared arrays is returned unchanged.

    **Arguments:**

    - `model`: a pytree, adapted or not.
    - `key`: initialises arrays that do not exist yet, in an adapter that was built by hand.

    **Raises:** `SelectionError` if an array is missing; if two trained arrays have the same name
    (resolve two models in one tree separately); or if `model` is a `Net` or a set.
    """
    expect_model(model, "resolve")
    if key is not None:
        model = with_shared_arrays(model, key=key)
    arrays = functools.cache(lambda: shared_arrays(model))
    trained = _trained_names(model)

    def hand_over(_: LoRAWrapper, shared: Shared) -> Shared:
        if shared.value is not None and shared.name not in trained:
            return shared
        return lent(shared, _array_of(shared, arrays))

    return _on_shared(hand_over, model)


def filler(model: PyTree) -> Callable[[LoRAWrapper], LoRAWrapper]:
    """A function that puts shared arrays into one adapter of `model`, so that it can be merged.

    A stacked layer gets a copy with the axes of the stack.
    """
    arrays = functools.cache(lambda: shared_arrays(model))

    def copy(adapter: LoRAWrapper, shared: Shared) -> Shared:
        return kept(shared, _copies(adapter, _array_of(shared, arrays)))

    return functools.partial(_on_shared, copy)


def with_shared_arrays(model: M, *, key: PRNGKeyArray) -> M:
    """`model` with every array that its adapters share. `key` initialises new arrays.

    **Raises:** `SelectionError` if an existing array is too small for an adapter, if an array was
    removed, or if adapters of different packages chose the same name.
    """
    arrays = shared_arrays(model)
    first_users: dict[str, tuple[LoRAWrapper, Shared]] = {}
    shapes: dict[str, tuple[int, ...]] = {}  # with room for every adapter's part
    for adapter, _, shared in _users(model):
        first, first_shared = first_users.setdefault(shared.name, (adapter, shared))
        if _authors_of(first, first_shared).isdisjoint(_authors_of(adapter, shared)):
            raise SelectionError(
                f"{type(first).__name__} of {type(first).__module__} and {type(adapter).__name__} "
                f"of {type(adapter).__module__} share an array {shared.name!r}, but different "
                "packages define them. Their authors must choose different names."
            )
        shapes[shared.name] = tuple(map(max, shapes.get(shared.name, shared.shape), shared.shape))
    for name, (adapter, shared) in first_users.items():
        if name in arrays:
            continue
        if shared.make is None:  # the array was removed, and a new array would be wrong
            raise _missing(name)
        array = shared.make(jax.random.fold_in(key, stable_hash(name)), shapes[name])
        arrays[name] = replicated_beside(adapter.base, array)
    return put_shared(model, arrays)


def _authors_of(adapter: LoRAWrapper, shared: Shared) -> set[str]:
    """The top-level packages that define the class of an adapter, and how its array is made."""
    return {type(adapter).__module__.partition(".")[0], shared._package} - {"jax"}


def put_shared(model: M, arrays: Mapping[str, Array]) -> M:
    """`model` in which every adapter has the frozen arrays that it uses from `arrays`.

    The first adapter that uses a trained array keeps it. Existing arrays of the model stay.

    **Raises:** `SelectionError` if an adapter uses an array that neither `arrays` nor `model` has,
    or that is too small for it, or of another kind.
    """
    arrays = {**arrays, **shared_arrays(model)}
    trained = _trained_names(model)
    seen: set[str] = set()  # the names of the trained arrays that an adapter keeps

    def put(adapter: LoRAWrapper, shared: Shared) -> Shared:
        array = _array_of(shared, lambda: arrays)
        fits = array.ndim == len(shared.shape) and all(map(operator.ge, array.shape, shared.shape))
        if not fits or not jnp.issubdtype(array.dtype, jnp.inexact):
            raise SelectionError(
                f"The shared array {shared.name!r} is {show_array(array)}, but an adapter needs "
                f"floating numbers of the shape {shared.shape}. Adapt all layers that share it in "
                "one call, or unwrap the adapters first."
            )
        value = array if shared.name in trained else _copies(adapter, array)
        value = None if shared.name in seen else value
        seen.update(trained & {shared.name})
        return kept(shared, value, shape=array.shape, make=None)

    return _on_shared(put, model)


def without_shared(adapter: LoRAWrapper) -> LoRAWrapper:
    """`adapter` without its shared arrays."""
    return _on_shared(lambda _, shared: kept(shared, None), adapter)


def with_shared_values(
    mask: PyTree, adapter: LoRAWrapper, values: Mapping[str, bool]
) -> PyTree[bool]:
    """`mask`, an adapter's tree of bools, with a bool where `adapter` has a shared array.

    - `values`: bools by the names of arrays. Without an entry, the bool of `mask` stays.
    """

    def bool_of(flag: PyTree, item: PyTree) -> PyTree:
        if not is_shared(item):
            return flag
        return kept(item, None if item.value is None else values.get(item.name, flag.value))

    return jax.tree.map(bool_of, mask, adapter, is_leaf=is_shared)


def shared_arrays(model: PyTree) -> dict[str, Any]:
    """The arrays that the adapters of `model` share, by name.

    **Raises:** `SelectionError` if two arrays have the same name. Copies of a frozen array, such as
    those for the layers of a stack, count once.
    """
    arrays: dict[str, Any] = {}
    for _, trains, shared in _users(model):
        array = array_in(shared)
        if array is None:
            continue
        first = arrays.setdefault(shared.name, array)
        copies = array if shared.value is None else shared.value
        if copies is not first and (trains or not _are_copies(copies, first)):
            raise SelectionError(
                f"There are two arrays {shared.name!r} in this tree, each shared by adapters: the "
                "tree contains two models. Pass each model alone."
            )
    return arrays


def _are_copies(copies: Any, array: Any) -> bool:
    """Whether `copies`, which may have the axes of a stack, equal `array`, as far as is known."""
    if copies.shape[copies.ndim - array.ndim :] != array.shape:
        return False
    is_known = eqx.is_array_like(copies) and not is_traced(copies, array)
    return not is_known or np.array_equal(copies, np.broadcast_to(array, copies.shape))


def names_shared_in(model: PyTree) -> set[str]:
    """The names of the shared arrays that adapters of `model` use."""
    return {shared.name for _, _, shared in _users(model)}


def names_to_resolve(model: PyTree) -> set[str]:
    """The names of the shared arrays for which the loss must call `resolve`."""
    return {
        shared.name
        for adapter, trains, shared in _users(model)
        if shared.value is None or (trains and type(adapter).stack_ndim(adapter.base))
    }


def _users(model: PyTree) -> Iterator[tuple[LoRAWrapper, bool, Shared]]:
    """Each adapter of `model` with a `Shared`, and whether the adapter trains its array."""
    for node in jax.tree.leaves(model, is_leaf=is_adapter):
        if is_adapter(node):
            for name, shared in shared_fields(node):
                yield node, name in trainable_fields(type(node)), shared


def _trained_names(model: PyTree) -> set[str]:
    return {shared.name for _, trains, shared in _users(model) if trains}


def _on_shared(function: Callable[[LoRAWrapper, Shared], Shared], tree: M) -> M:
    """`tree` with `function(adapter, shared)` in the place of each `Shared` of an adapter."""

    def in_node(node: PyTree) -> PyTree:
        of_node = functools.partial(function, node)
        return jax.tree.map(lambda x: of_node(x) if is_shared(x) else x, node, is_leaf=is_shared)

    return jax.tree.map(in_node, tree, is_leaf=is_adapter) if names_shared_in(tree) else tree


def _copies(adapter: LoRAWrapper, array: Any) -> Any:
    """`array` itself, or for an adapter of stacked layers a copy for each layer."""
    ndim = type(adapter).stack_ndim(adapter.base)
    leaves = jax.tree.leaves(eqx.filter(adapter.base, eqx.is_array)) if ndim else ()
    shape = (*leaves[0].shape[:ndim], *array.shape) if leaves else array.shape
    return array if shape == array.shape else jnp.broadcast_to(array, shape)


def _array_of(shared: Shared, arrays: Callable[[], Mapping[str, Any]]) -> Any:
    array = array_in(shared)
    array = arrays().get(shared.name) if array is None else array
    if array is None:
        raise _missing(shared.name)
    return array


def _missing(name: str) -> SelectionError:
    return SelectionError(
        f"An adapter uses the shared array {name!r}, which is missing: another adapter of the same "
        "model keeps it. Give the whole model, or set."
    )
