"""A case: an adapter, a layer with inputs, and the objects that checks build from them."""

import dataclasses
import functools
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, PRNGKeyArray, PyTree

from jno.lora import LoRAWrapper, MatrixAdapter, lora_trainable_filter
from jno.lora.extending import construct, is_coded, run, statistics_of, with_shared_arrays

from ._symmetries import Inputs, Symmetry

Law: TypeAlias = Callable[[PyTree], ArrayLike | Mapping[str, ArrayLike]]

# The reason that a check is not applicable.
NOT_MERGEABLE = "the adapter cannot be merged"


def _cached(make: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """`make`, with its last 16 results cached."""
    lookup = functools.lru_cache(16)(
        lambda case, widest, *args, **options: make(case, *args, **options)
    )

    @functools.wraps(make)
    def cached(case: "WrapperCase", *args: object, **options: object) -> PyTree:
        widest = jax.dtypes.canonicalize_dtype(float)  # with 64 bits enabled, the arrays differ
        return lookup(case, widest, *args, **options)

    return cached


@dataclasses.dataclass(frozen=True, eq=False)
class WrapperCase:
    """An adapter and a layer to check it on.

    **Arguments:**

    - `wrapper`: the adapter class.
    - `base`: makes a float32 layer from a key. Choose a small layer with different `in` and `out`,
        so that checks notice a transposed matrix.
    - `inputs`: makes the tuple of positional inputs of one call from a key.
    - `rank`, `alpha`, `options`: the arguments of the adapter.
    - `call`: calls a layer with the inputs, by default `layer(*inputs)`.
    - `parameters`: the documented number of trained parameters for this base and rank; `None`
        leaves it unchecked.
    - `mergeable`: `False` for an adapter that cannot be merged into its layer's weight, such as a
        prefix. Its `merge()` must raise a `WrapperError`; checks of the merged layer are skipped.
        By default `wrapper.mergeable`.
    - `law`: an independent implementation of the method, written from the paper, for example in
        NumPy: a function of the trained adapter that returns the merged layer's `weight`, or a dict
        of its attributes (`weight`, `bias`). Without a law, a mistake that `merge` and `__call__`
        share, such as a transposed matrix, passes unnoticed.
    - `name`: the name in test ids and tables, by default the name of the wrapper. Give names if
        several cases have the same wrapper.
    - `checks`: the ids of the checks that run on this case; `*` and `?` stand for any letters. By
        default all. A second layer of a kind needs only the checks that compare values, which take
        half a second, while the whole kit takes about ten seconds per case.
    - `symmetries`: the symmetries of the layer, such as `(cyclic_shift(-1),)`. The trained adapter
        and its merged layer must keep them.
    - `breaks`: the names of the symmetries that the adapter's law breaks. It is an error if the
        adapter keeps a declared symmetry, so that the declaration stays true.

    **Raises:** `ValueError` if `breaks` names an unknown symmetry.
    """

    wrapper: type[LoRAWrapper]
    base: Callable[[PRNGKeyArray], eqx.Module]
    inputs: Callable[[PRNGKeyArray], Inputs]
    rank: int = 2
    alpha: float = 4.0
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    call: Callable[..., PyTree] = operator.call
    parameters: int | None = None
    mergeable: bool | None = None
    law: Law | None = None
    name: str = ""
    checks: Collection[str] = ("*",)
    symmetries: Sequence[Symmetry] = ()
    breaks: Collection[str] = ()

    def __post_init__(self) -> None:
        names = [symmetry.name for symmetry in self.symmetries]
        if unknown := {*self.breaks} - {*names}:
            raise ValueError(
                f"`breaks` names {sorted(map(repr, unknown))}, not symmetries of the case. Their "
                f"names: {names}."
            )
        if self.mergeable is None:
            object.__setattr__(self, "mergeable", self.wrapper.mergeable)

    def __str__(self) -> str:
        return self.name or self.wrapper.__name__

    @_cached
    def make_base(self, dtype: DTypeLike | None = None, seed: int = 1) -> PyTree:
        """The layer, its floating arrays cast to `dtype`, its complex arrays at least complex64."""
        with jax.numpy_dtype_promotion("standard"):  # the adapter makes the promises, not the layer
            return cast(self.base(jax.random.key(seed)), dtype)

    @_cached
    def make_inputs(self, dtype: DTypeLike | None = None, seed: int = 2) -> Inputs:
        """The inputs, cast like `make_base`."""
        with jax.numpy_dtype_promotion("standard"):
            return cast(self.inputs(jax.random.key(seed)), dtype)

    def build(self, base: PyTree, key: PRNGKeyArray | None = None) -> PyTree:
        """The adapter around `base`, which is a single layer, not a stack."""
        key = jax.random.key(3) if key is None else key
        return with_shared_arrays(constructed(self, base, key), key=key)

    @_cached
    def make(self, dtype: DTypeLike | None = None) -> PyTree:
        """The freshly initialised adapter around `make_base(dtype)`."""
        base = self.make_base(dtype)
        return self.build(base) if dtype is None else run(WrapperCase.build, self, base)

    @_cached
    def make_trained(self, dtype: DTypeLike | None = None) -> PyTree:
        """The adapter after random changes of its trainable arrays."""
        return perturbed(self.make(dtype))

    def run(self, layer: PyTree, inputs: Inputs | None = None) -> PyTree:
        """The layer's output, computed operation by operation."""
        return self.call(layer, *(self.make_inputs() if inputs is None else inputs))


def constructed(
    case: WrapperCase, base: PyTree, key: PRNGKeyArray, rows: int | None = None
) -> PyTree:
    """The adapter without shared arrays, built from `random_statistics` of `rows` vectors."""
    statistics = random_statistics(case.wrapper, base, rows)
    options = {"options": case.options, "statistics": statistics}
    return construct(case.wrapper, base, case.rank, case.alpha, key=key, **options)


def random_statistics(
    cls: type[LoRAWrapper], layer: PyTree, rows: int | None = None
) -> dict[str, Array] | None:
    """The statistics that `cls` needs, of `rows` random vectors (by default, twice the width)."""
    if not statistics_of(cls):
        return None
    outputs, inputs = eqx.filter_eval_shape(MatrixAdapter.of(cls).matrix, layer).shape
    random = np.random.default_rng(6)
    values: dict[str, Array] = {}
    for statistic in statistics_of(cls):
        width = outputs if statistic.of == "outputs" else inputs
        n = 2 * width if rows is None else rows
        V = jnp.asarray(random.normal(size=(n, width)), jnp.float32)
        if statistic.of == "gradient":
            left = jnp.asarray(random.normal(size=(outputs, n)), jnp.float32)
            mean = statistic.right(left @ V / max(n, 1))
        else:
            mean = statistic.left(V).T @ statistic.right(V) / max(n, 1)
        values[statistic.name] = statistic.value(mean)
    return values


def split(adapter: PyTree) -> tuple[PyTree, PyTree]:
    """The adapter's trainable and frozen arrays."""
    return eqx.partition(adapter, lora_trainable_filter(adapter))


def perturbed(adapter: PyTree, size: float = 0.3) -> PyTree:
    """`adapter` with random numbers of this `size` added to its trainable arrays."""
    random = np.random.default_rng(4)

    def moved(leaf: PyTree) -> PyTree:
        step = size * random.normal(size=leaf.shape)
        if np.iscomplexobj(leaf):
            step = step + 1j * size * random.normal(size=leaf.shape)
        step = step.astype(leaf.dtype)
        if isinstance(leaf, Tracer):
            return leaf + step
        # NumPy adds, because JAX would compile an addition for each shape.
        array = np.asarray(leaf) + step
        is_placed = isinstance(leaf, jax.Array) and leaf.committed
        return jax.device_put(array, leaf.sharding if is_placed else None)

    trainable, frozen = split(adapter)
    return eqx.combine(jax.tree.map(moved, trainable), frozen)


def skeleton(make: Callable[[PRNGKeyArray], PyTree]) -> PyTree:
    """The result of `make` with zeros, because JAX would compile each random start."""
    tree = eqx.filter_eval_shape(make, jax.random.key(0))

    def zeros(leaf: PyTree) -> PyTree:
        is_shape = isinstance(leaf, jax.ShapeDtypeStruct)
        return jnp.asarray(np.zeros(leaf.shape, leaf.dtype)) if is_shape else leaf

    return jax.tree.map(zeros, tree)


def cast(tree: PyTree, dtype: DTypeLike | None) -> PyTree:
    """`tree`, its floating arrays cast to `dtype`, its complex arrays at least complex64."""
    if dtype is None:
        return tree
    complex_dtype = jnp.complex128 if dtype == jnp.float64 else jnp.complex64  # no half precision

    def cast_leaf(leaf: PyTree) -> PyTree:
        if not (eqx.is_inexact_array(leaf) or is_coded(leaf)):
            return leaf
        return leaf.astype(complex_dtype if jnp.iscomplexobj(leaf) else dtype)

    return jax.tree.map(cast_leaf, tree, is_leaf=is_coded)
