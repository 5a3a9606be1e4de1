"""The compiled programs of the checks.

Layers with the same structure share a program. Without programs, JAX would compile each operation
for each new shape, which would take most of a check's time.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from jno.lora import merge_lora
from jno.lora.extending import with_arrays

from ._case import WrapperCase, perturbed, split
from ._comparisons import arrays_of, is_key, require_close
from ._symmetries import Call, Inputs


def compiled(function: Callable[..., Any]) -> Any:
    """`function`, compiled if possible, because only the check `jit` requires compilation."""
    jitted = eqx.filter_jit(function)

    @functools.wraps(function)
    def call(*args: PyTree) -> PyTree:
        try:
            return jitted(*args)
        except Exception:
            return function(*args)

    return call


def output(case: WrapperCase, layer: PyTree, inputs: Inputs | None = None) -> PyTree:
    return _output(layer, case.call, case.make_inputs() if inputs is None else inputs)


@compiled
def _output(layer: PyTree, call: Call, inputs: Inputs) -> PyTree:
    return call(layer, *inputs)


@compiled
def mapped_output(layer: PyTree, call: Call, inputs: Inputs) -> PyTree:
    return jax.vmap(lambda inputs: call(layer, *inputs))(inputs)


# The next two functions are for `run`, which runs LAPACK in constructors on one thread.
def mapped_and_scanned(
    case: WrapperCase, bases: PyTree, keys: Array, inputs: Inputs
) -> tuple[PyTree, PyTree]:
    """Adapters around stacked `bases`, built by `vmap`, and their outputs by `lax.scan`."""
    adapters = perturbed(eqx.filter_vmap(case.build)(bases, keys))
    arrays, static = eqx.partition(adapters, eqx.is_array)
    # `map` is a `scan` without a carry.
    outputs = jax.lax.map(lambda layer: case.call(eqx.combine(layer, static), *inputs), arrays)
    return adapters, outputs


class StartAndMerge(NamedTuple):
    """The outputs of a fresh, trained and merged adapter, with the latter two layers.

    An adapter that cannot be merged stands for its merged layer.
    """

    start: PyTree
    trained: PyTree
    merged: PyTree
    adapter: PyTree
    plain: PyTree


def start_and_merge(case: WrapperCase, base: PyTree, inputs: Inputs) -> StartAndMerge:
    fresh = case.build(base)
    adapter = perturbed(fresh)
    plain = merged(adapter) if case.mergeable else adapter
    start, trained, after = (case.call(layer, *inputs) for layer in (fresh, adapter, plain))
    return StartAndMerge(start, trained, after, adapter, plain)


@compiled
def gradients(varied: PyTree, fixed: PyTree, call: Call, inputs: Inputs) -> PyTree:
    """The gradients of a loss of the output with respect to the arrays in `varied`."""
    return jax.grad(lambda varied: loss_of(call(eqx.combine(varied, fixed), *inputs)))(varied)


def loss_of(outputs: PyTree) -> Array:
    """A real number that depends on every output of a layer."""
    leaves = jax.tree.leaves(outputs)
    imaginary = [jnp.imag(output) for output in leaves if jnp.iscomplexobj(output)]
    terms = [jnp.sum(jnp.sin(part)) for part in (*map(jnp.real, leaves), *imaginary)]
    return sum(terms[1:], start=terms[0])


@compiled
def _through_merge(trainable: PyTree, frozen: PyTree, gradients: PyTree) -> PyTree:
    """Pull the gradients of the merged layer's arrays back through `merge()`."""

    def arrays(trainable: PyTree) -> PyTree:
        adapter = with_arrays(eqx.combine(trainable, frozen))
        return eqx.filter(merge_lora(adapter), eqx.is_inexact_array)

    _, pull_back = eqx.filter_vjp(arrays, trainable)
    return pull_back(gradients)[0]


def require_gradients_of_merge(
    case: WrapperCase, gradients_of: Call, argument: PyTree, bound: float, problem: str
) -> None:
    """**Raises:** `ConformanceError` if the gradients differ from those through `merge()`."""
    trainable, frozen = split(case.make_trained())
    varied, fixed = eqx.partition(merged(case.make_trained()), eqx.is_inexact_array)
    of_merged = gradients_of(varied, fixed, case.call, argument)
    expected = _through_merge(trainable, frozen, of_merged)
    require_close(gradients_of(trainable, frozen, case.call, argument), expected, bound, problem)


@compiled
def attributes(adapter: PyTree, names: tuple[str, ...]) -> dict[str, PyTree]:
    return {name: getattr(adapter, name, None) for name in names}


def merged(adapter: PyTree) -> PyTree:
    """The merged layer, with plain arrays."""
    return merge_lora(with_arrays(adapter))


def stacked(trees: list[PyTree]) -> PyTree:
    """One tree, whose arrays are stacked along a first axis."""
    return jax.tree.map(lambda *x: jnp.stack(x) if eqx.is_array(x[0]) else x[0], *trees)


def slice_of(stack: PyTree, index: int) -> PyTree:
    """The tree at `index` of a stack."""
    arrays, static = eqx.partition(stack, eqx.is_array)

    def slice_array(x: Array) -> Array:
        # JAX would compile the slicing of an array.
        return x[index] if is_key(x) else jnp.asarray(np.asarray(x)[index])

    return eqx.combine(jax.tree.map(slice_array, arrays), static)


def shard(layer: PyTree) -> tuple[PyTree, list[NamedSharding]]:
    """The layer with each array split along an axis that the devices divide, and the shardings."""
    sizes = {size for array in arrays_of(layer) for size in array.shape}
    counts = [n for n in range(len(jax.devices()), 0, -1) if any(s % n == 0 for s in sizes)]
    if not counts:
        return layer, []
    mesh = Mesh(np.array(jax.devices()[: counts[0]]), ("devices",))

    def sharding_of(array: Array) -> NamedSharding:
        axis = next((i for i, size in enumerate(array.shape) if size % counts[0] == 0), None)
        axes = ["devices" if i == axis else None for i in range(array.ndim)]
        return NamedSharding(mesh, PartitionSpec(*axes))

    arrays, static = eqx.partition(layer, eqx.is_array)
    shardings = jax.tree.map(sharding_of, arrays)
    return eqx.combine(jax.device_put(arrays, shardings), static), jax.tree.leaves(shardings)
