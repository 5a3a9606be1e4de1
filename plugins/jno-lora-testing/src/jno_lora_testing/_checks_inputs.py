"""Checks of values that authors overlook: special inputs, alpha, half precision, subclasses."""

import dataclasses
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import PyTree

from jno.lora.extending import run, takes, with_arrays

from ._case import NOT_MERGEABLE, WrapperCase, cast, perturbed
from ._checks_values import NO_HALF, halves_of, require_start_and_merge
from ._comparisons import arrays_of, is_finite, relative_error, require, require_close, same_bits
from ._conformance import advice, is_refusal, required, skip_unless
from ._programs import StartAndMerge, merged, output, start_and_merge
from ._symmetries import Inputs

_TOLERANCE = 4e-5
# How many half-precision roundings may add up in a call or a merge.
_HALF_ROUNDINGS = 6
_LARGE = 100


@required("check divisions by norms, clipping, and indices that count from the end.")
def check_special_inputs(case: WrapperCase) -> None:
    """Zeros, large and negative inputs, and indices 0 and -1 give the merged layer's outputs."""
    trained = case.make_trained()
    # If an adapter cannot be merged, the fresh adapter is compared with the layer.
    adapter, plain = (
        (trained, merged(trained)) if case.mergeable else (case.make(), case.make_base())
    )
    is_compared = False
    for name, inputs in _special(case.make_inputs()).items():
        try:
            output(case, case.make_base(), inputs)
        except Exception:  # the layer may raise for such inputs
            continue
        expected = output(case, plain, inputs)
        if not is_finite(expected):
            continue
        is_compared = True
        # Rounding, also as magnified by the layer itself (a softmax of large numbers).
        moved = jax.tree.map(lambda x: x * 1.00001 if eqx.is_inexact_array(x) else x, inputs)
        bound = _TOLERANCE + 10 * relative_error(output(case, plain, moved), expected)
        problem = f"For {name}, the adapter and the plain layer differ"
        require_close(output(case, adapter, inputs), expected, bound, problem)
    skip_unless(is_compared, "the layer gives no finite outputs for special inputs")


def _special(inputs: PyTree) -> dict[str, Inputs]:
    """Inputs by their description."""
    numbers, indices = eqx.is_inexact_array, _is_index
    changes = {
        "inputs of zeros": (numbers, jnp.zeros_like),
        "large inputs": (numbers, lambda x: _LARGE * x),
        "negative inputs": (numbers, lambda x: -(jnp.abs(x).astype(x.dtype))),
        "the index 0": (indices, jnp.zeros_like),
        "the index -1": (indices, lambda x: jnp.full_like(x, -1)),
    }
    return {
        name: jax.tree.map(lambda x, has=has, to=to: to(x) if has(x) else x, inputs)
        for name, (has, to) in changes.items()
        if any(map(has, jax.tree.leaves(inputs)))
    }


def _is_index(leaf: PyTree) -> bool:
    return eqx.is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.signedinteger)


@required("scale by `alpha` where the paper does; reject `alpha = 0` only if you divide by it.")
def check_alpha(case: WrapperCase) -> None:
    """With alpha 0 and a fractional alpha, the adapter starts, merges and follows its law.

    Its output depends on alpha, unless the constructor does not take one.
    """
    skip_unless("alpha" in takes(case.wrapper), "the adapter takes no alpha")
    for alpha in (0.0, 0.75):
        scaled = dataclasses.replace(case, alpha=alpha)
        try:
            built = run(start_and_merge, scaled, case.make_base(), case.make_inputs())
        except Exception as err:
            if alpha or not is_refusal(err):
                raise
            continue
        require_start_and_merge(case, built, f"With alpha {alpha}, ")
        error = relative_error(built.trained, output(case, case.make_trained()))
        require(
            error > _TOLERANCE or alpha == case.alpha,
            f"The output is the same with alpha {alpha} and with alpha {case.alpha}.",
            "scale by `alpha`; or, if the method has no scale, let `__init__` not take `alpha`.",
        )


@required("cast to float32 before small numbers are added or multiplied, and cast the result back.")
def check_trained_in_half_precision(case: WrapperCase) -> None:
    """A trained adapter of a half-precision layer, and the merged layer, agree with float32."""
    dtypes = halves_of(case)
    skip_unless(dtypes, NO_HALF)
    compared = [_compare_with_float32(case, dtype) for dtype in dtypes]
    skip_unless(any(compared), "rounding by the layer itself hides the update")


def _compare_with_float32(case: WrapperCase, dtype: DTypeLike) -> bool:
    """Whether the update exceeds the rounding. **Raises:** `ConformanceError` if it is wrong."""
    inputs = case.make_inputs(dtype)
    wide_inputs, wide_base = cast(inputs, jnp.float32), cast(case.make_base(dtype), jnp.float32)
    at_base = output(case, wide_base, wide_inputs)
    trained, expected = _moved_far(case, dtype, wide_inputs, at_base)
    # The layer may add noise, or decide by a threshold.
    plain = merged(cast(trained, jnp.float32)) if case.mergeable else wide_base
    of_layer = output(case, cast(plain, dtype), inputs)
    error_of_layer = relative_error(of_layer, expected if case.mergeable else at_base)
    bound = _HALF_ROUNDINGS * float(jnp.finfo(dtype).eps) + 2 * error_of_layer
    if relative_error(at_base, expected) <= bound:
        return False
    with_dtype = f"With {jnp.dtype(dtype).name}, the trained adapter's output"
    problem = f"{with_dtype} differs from the output in float32"
    require_close(output(case, trained, inputs), expected, bound, problem)
    if case.mergeable:
        problem = f"{with_dtype} in float32 differs from the merged layer's"
        require_close(output(case, merged(trained), inputs), expected, bound, problem)
    return True


def _moved_far(
    case: WrapperCase, dtype: DTypeLike, inputs: PyTree, at_base: PyTree
) -> tuple[PyTree, PyTree]:
    """An adapter moved until its update is half of its float32 output; and this output."""
    trained = case.make_trained(dtype)
    expected = output(case, cast(trained, jnp.float32), inputs)
    for size in (1.0, 3.0, 10.0):
        if relative_error(at_base, expected) >= 0.5:
            break
        farther = perturbed(case.make(dtype), size)
        outputs = output(case, cast(farther, jnp.float32), inputs)
        if np.isfinite(relative_error(outputs, at_base)):
            trained, expected = farther, outputs
    return trained, expected


@required(
    "call the layer (`self.base(x)`), or put the new weight into the layer and call that; or claim "
    "the exact type (`type(leaf) is ...`)."
)
def check_subclass(case: WrapperCase) -> None:
    """A claimed subclass that computes more than its class does so with an adapter, too.

    Otherwise the fresh adapter would silently change the outputs of the model.
    """
    layer, built = _of_subclass(case)
    problem = "Around a subclass with a `__call__` of its own, the fresh adapter differs from it"
    require_close(built.start, output(case, layer), _TOLERANCE, problem)


@advice("put the new weight into the layer and call that, or claim the exact type.")
def check_subclass_merge(case: WrapperCase) -> None:
    """Around a subclass that computes more than its class, the merged layer equals the adapter.

    This is advice, because `base(x) + update(x)` and a merged weight differ only for some
    subclasses: a `__call__` that scales its output also scales a merged weight, but not an added
    update.
    """
    skip_unless(case.mergeable, NOT_MERGEABLE)
    _, built = _of_subclass(case)
    problem = "Around a subclass with a `__call__` of its own, `merge()(x)` and `wrapper(x)` differ"
    require_close(built.merged, built.trained, _TOLERANCE, problem)


def _of_subclass(case: WrapperCase) -> tuple[PyTree, StartAndMerge]:
    layer = _doubling(case.make_base())
    skip_unless(case.wrapper.applies_to(layer), "the adapter does not claim subclasses")
    return layer, run(start_and_merge, case, layer, case.make_inputs())


@functools.cache
def _doubling_class(cls: type) -> type:
    def call(self: object, *args: PyTree, **kwargs: PyTree) -> PyTree:
        return jax.tree.map(lambda y: y + y, cls.__call__(self, *args, **kwargs))

    return type(f"Doubling{cls.__name__}", (cls,), {"__call__": call, "__module__": __name__})


def _doubling(layer: PyTree) -> PyTree:
    """`layer` as an object of a subclass whose output is twice the layer's."""
    copy = object.__new__(_doubling_class(type(layer)))
    for name, value in vars(layer).items():
        object.__setattr__(copy, name, value)
    return copy


@required("return new values; modify no argument, field or global object.")
def check_purity(case: WrapperCase) -> None:
    """The constructor, the call and `merge` have no side effects, and repeat their results."""
    base: PyTree = jax.tree.map(lambda leaf: leaf, case.make_base())
    before = jax.tree.leaves(base)
    adapter = perturbed(case.build(base))
    _require_unchanged(before, base, "The constructor changes the layer that it was given.")
    before = jax.tree.leaves(adapter)
    require(
        same_bits(case.run(adapter), case.run(adapter)), "Two calls with the same input differ."
    )
    _require_unchanged(before, adapter, "The call changes the adapter.")
    effects = _effects(case, adapter) - _effects(case, base)
    require(not effects, f"The call has side effects: {effects}.", "print elsewhere.")
    if case.mergeable:
        adapter = with_arrays(adapter)
        before = jax.tree.leaves(adapter)
        first, second = adapter.merge(), adapter.merge()
        require(same_bits(first, second) and arrays_of(second), "Two calls of `merge()` differ.")
        _require_unchanged(before, adapter, "`merge()` changes the adapter.")


def _effects(case: WrapperCase, layer: PyTree) -> set[str]:
    jaxpr, *_ = eqx.filter_make_jaxpr(case.call)(layer, *case.make_inputs())
    return {f"{effect}" for effect in jaxpr.effects}


def _require_unchanged(before: list[object], tree: PyTree, problem: str) -> None:
    after = jax.tree.leaves(tree)
    is_same = len(after) == len(before) and all(map(lambda a, b: a is b, before, after))
    require(is_same, problem)
