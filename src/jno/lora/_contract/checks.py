"""Checks that several functions share: of models, random keys, ranks, numbers and merged layers."""

import contextlib
import numbers
import os
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree

from .._compute.precision import held_dtype
from .._errors import SelectionError, WrapperError
from .._paths import path_str, show_array


class NotAPytree:
    """The base class of `Net`. No fields.

    Functions of trees raise an error for a net, because JAX would treat it as a leaf, and Equinox
    as a constant: `filter_jit` would keep computing with old values, and a saved file would be
    empty.
    """

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        jtu.register_pytree_node(cls, _refuse_to_flatten, lambda _, children: children)


class NotAModel:
    """The base class of `AdapterSet`, a pytree without layers. No fields."""


def _refuse_to_flatten(net: NotAPytree) -> NoReturn:
    raise SelectionError(
        f"A {type(net).__name__} is a handle on a model and not a pytree, but was given to a "
        "function of pytrees (of JAX, Equinox or optax), alone or inside of another tree. Give "
        "it the model, `net.module`, or a tree that `net.partition()` returns. (If that was "
        "`eqx.tree_serialise_leaves`, it has emptied its file already: write the file again.)"
    )


def expect_model(model: PyTree, function: str) -> None:
    """**Raises:** `SelectionError` if `model` is a `Net`, a set without layers, or a path."""
    if isinstance(model, NotAModel):
        came, advice = "an AdapterSet", ". Give swap_adapters(model, adapters)"
    elif isinstance(model, NotAPytree):
        came, advice = f"a {type(model).__name__}", ". Give net.module"
    elif isinstance(model, str | os.PathLike):
        came, advice = f"the path {os.fspath(model)!r}", ""
    else:
        return
    raise SelectionError(f"{function} takes a model, but was given {came}{advice}")


def check_key(key: Any) -> None:
    """**Raises:** `SelectionError` unless `key` is one key of `jax.random`."""
    is_array = isinstance(key, jax.Array | np.ndarray)
    is_typed = is_array and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    with contextlib.suppress(TypeError, ValueError):  # raised unless it is a raw key
        if (key if is_typed else jax.random.wrap_key_data(jnp.asarray(key))).ndim == 0:
            return
    came = f"an array {show_array(key)}" if is_array else repr(key)
    raise SelectionError(f"`key` must be one random key, such as jax.random.key(0), but is {came}.")


def check_rank(rank: object, what: str = "`rank`", advice: str = "") -> None:
    """**Raises:** `SelectionError` unless `rank` is an integer of at least 1."""
    if not isinstance(rank, numbers.Integral) or isinstance(rank, bool) or rank < 1:
        came = "is missing" if rank is None else f"is {rank!r}"
        raise SelectionError(f"{what} must be an integer of at least 1, but {came}.{advice}")


def check_number(name: str, number: object) -> None:
    """**Raises:** `SelectionError` unless `number` is one real number, which may be traced."""
    is_number = isinstance(number, int | float)
    if isinstance(number, np.ndarray | np.generic | jax.Array):
        real = (np.bool_, jnp.integer, jnp.floating)
        is_number = number.ndim == 0 and any(jnp.issubdtype(number.dtype, kind) for kind in real)
    if not is_number:
        raise SelectionError(f"`{name}` must be one real number, but is {number!r}.")


def check_same_structure(base: PyTree, layer: PyTree, what: str) -> None:
    """**Raises:** `WrapperError` unless `layer` has the structure, shapes and dtypes of `base`.

    - `what`: the method that made `layer`, for the message.
    """
    before, structure = jtu.tree_flatten(base)
    after, new_structure = jtu.tree_flatten(layer)
    if structure != new_structure:
        raise WrapperError(
            f"{what} must return a layer of the structure that was wrapped, expected\n{base}\n"
            f"but got\n{layer}"
        )
    for index, (old, new) in enumerate(zip(before, after, strict=True)):
        if old is new or not hasattr(old, "dtype"):
            continue
        is_array = hasattr(new, "dtype")
        if not (is_array and old.shape == new.shape and held_dtype(old) == held_dtype(new)):
            path = path_str(jtu.tree_leaves_with_path(base)[index][0])
            came = show_array(new) if is_array else repr(new)
            raise WrapperError(
                f"{what} changes {path!r} from {show_array(old)} to {came}: keep the shape, and "
                "cast back to the base's dtype."
            )


def check_adapter_name(name: object) -> None:
    """**Raises:** `SelectionError` unless the name of adapters is a string."""
    if not isinstance(name, str):
        raise SelectionError(
            f"The name of adapters must be a string, but is {name!r}. Several sets act together by "
            "net.activate('a', 'b')."
        )
