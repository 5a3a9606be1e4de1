"""Products of an array with the factors of a weight `W + B A`."""

import functools
from typing import Any

import numpy as np
from jax import lax
from jaxtyping import Array

from ._named import RANK, Named, contract
from ._uses import Dot, Ragged


def dot_with_factors(
    dot: Dot, first: Named, second: Named, weight_names: str, weight_dtype: Any
) -> Array:
    """The product with `B A` alone, in the layout of the product with the weight.

    - `first`, `second`: the factors, in the order in which `x` is multiplied by them.
    - `weight_names`: the names of the weight's axes.
    """
    x_names, out_names = dot.names(weight_names)
    # A product may be wider than its factors: `preferred_element_type`.
    dtype = np.promote_types(dot.x.dtype, dot.out.dtype)
    x = Named(dot.x, x_names).cast(dtype)
    first, second = first.cast(dtype), second.cast(dtype)
    # An algorithm belongs to the dtypes that the function multiplies.
    has_same_dtypes = dtype == dot.x.dtype == weight_dtype
    precision = dot.precision if has_same_dtypes or _is_plain(dot.precision) else None
    names_after_first = [
        name
        for name in dict.fromkeys(out_names + second.names)
        if name in x.names + first.names and name != RANK
    ]
    low_rank = contract(x, first, "".join(names_after_first) + RANK, precision=precision)
    names = [name for name in out_names if name in low_rank.names + second.names]
    y = contract(low_rank, second, "".join(names), precision=precision).array
    return lax.convert_element_type(lax.reshape(y, dot.out.shape), dot.out.dtype)


def _is_plain(precision: Any) -> bool:
    """Whether a precision is none or a `jax.lax.Precision`, and not an algorithm."""
    first = precision[0] if isinstance(precision, tuple) else precision
    return first is None or isinstance(first, lax.Precision)


def ragged_with_factors(ragged: Ragged, base: Array, first: Array, second: Array) -> Array:
    """The ragged product with `W + B A`, whose factors are `(r, groups, features)`."""
    product = functools.partial(
        lax.ragged_dot,
        group_sizes=ragged.sizes,
        precision=ragged.precision,
        preferred_element_type=ragged.out.dtype,
    )
    dtype = ragged.x.dtype
    low_rank = product(ragged.x, first.astype(dtype).transpose(1, 2, 0)).astype(dtype)
    return product(ragged.x, base) + product(low_rank, second.astype(dtype).transpose(1, 0, 2))
