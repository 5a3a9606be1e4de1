"""A case: one adapter around one kind of layer, with inputs; and what checks build from it."""

import dataclasses
import functools
import operator
from collections.abc import Callable, Collection, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray, PyTree

from .._caches import remembered
from .._compute import call_compiled
from .._contract import LoRAWrapper, construct, is_coded, is_traced, statistics_of
from .._shared_arrays import uses_shared, with_shared_arrays
from .._trainability import lora_trainable_filter
from .._tree import claims

# Why a check is not applicable to such a case.
NOT_MERGEABLE = "the adapter cannot be merged"


def _kept(make: Callable[..., Any]) -> Callable[..., Any]:
    """`make`, whose results are kept until those of the next cases take their place."""
    found = remembered(16)(lambda case, widest, *args, **names: make(case, *args, **names))

    @functools.wraps(make)
    def made(case: Any, *args: Any, **names: Any) -> Any:
        widest = jax.dtypes.canonicalize_dtype(float)  # other arrays with 64 bits enabled
        return found(case, widest, *args, **names)

    return made


@dataclasses.dataclass(frozen=True, eq=False)
class WrapperCase:
    """An adapter and a layer for it, as the checks need them.

    **Arguments:**

    - `wrapper`: the adapter class.
    - `base`: makes a float32 layer from a key. Small is good; nothing should be symmetric (`in`
        unlike `out`), so that a transposed matrix is noticed.
    - `inputs`: makes the tuple of positional inputs of one call from a key.
    - `rank`, `alpha`, `options`: what the adapter is built with.
    - `call`: how a layer is called with the inputs, `layer(*inputs)` by default.
    - `parameters`: the number of trained parameters that the documentation promises for this base
        and rank; `None` leaves that unchecked.
    - `mergeable`: `False` for an adapter that cannot be a weight of its layer, such as a prefix.
        Its `merge()` must refuse with a `WrapperError`; checks of the merged layer are left out. By
        default what the class says.
    - `law`: the method written once more, from the paper and in NumPy, say: a function of the
        trained adapter that returns the merged layer's `weight`, or a dict of its attributes
        (`weight`, `bias`). Without it a mistake that `merge` and `__call__` share, such as a
        transposed matrix, passes.
    - `name`: the name in test ids, by default that of the wrapper. Name the cases of a wrapper that
        has several: expected failures and tables tell them apart by it.
    """

    wrapper: type[LoRAWrapper]
    base: Callable[[PRNGKeyArray], eqx.Module]
    inputs: Callable[[PRNGKeyArray], tuple[Any, ...]]
    rank: int = 2
    alpha: float = 4.0
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    call: Callable[..., Any] = operator.call
    parameters: int | None = None
    mergeable: bool | None = None
    law: Callable[[Any], Any] | None = None
    name: str = ""

    def __post_init__(self) -> None:
        if self.mergeable is None:
            object.__setattr__(self, "mergeable", self.wrapper.mergeable)

    def __str__(self) -> str:
        return self.name or self.wrapper.__name__

    @_kept
    def make_base(self, dtype: Any = None, seed: int = 1) -> Any:
        """The layer, its floating arrays cast to `dtype`."""
        return _cast(self.base(jax.random.key(seed)), dtype)

    @_kept
    def make_inputs(self, dtype: Any = None, seed: int = 2) -> tuple[Any, ...]:
        """The inputs, their floating arrays cast to `dtype`."""
        return _cast(self.inputs(jax.random.key(seed)), dtype)

    def build(self, base: Any, key: Any = None) -> Any:
        """The adapter around `base`, which is one layer (not a stack)."""
        key = jax.random.key(3) if key is None else key
        made = constructed(self, base, key)
        return with_shared_arrays(made, key=key) if uses_shared(made) else made

    @_kept
    def make(self, dtype: Any = None) -> Any:
        """The adapter around `make_base(dtype)`, as initialised."""
        base = self.make_base(dtype)
        return self.build(base) if dtype is None else call_compiled(WrapperCase.build, self, base)

    @_kept
    def make_trained(self, dtype: Any = None) -> Any:
        """The adapter after its trainable arrays moved at random."""
        return perturbed(self.make(dtype))

    def run(self, layer: Any, inputs: tuple[Any, ...] | None = None) -> Any:
        """The layer's output, operation by operation."""
        return self.call(layer, *(self.make_inputs() if inputs is None else inputs))


def constructed(case: WrapperCase, base: Any, key: Any) -> Any:
    """The adapter as its constructor makes it, without the arrays that it shares."""
    return construct(
        case.wrapper,
        base,
        case.rank,
        case.alpha,
        key=key,
        options=case.options,
        statistics=invented_statistics(case.wrapper, base),
    )


def invented_statistics(
    cls: type[LoRAWrapper], layer: Any, rows: int | None = None
) -> dict[str, Any] | None:
    """The statistics that `cls` needs of one `layer`, for data that are drawn at random.

    - `rows`: how many vectors were seen. By default more than there are inputs.
    """
    if not cls.needs:
        return None
    outputs, inputs = eqx.filter_eval_shape(cls.matrix, layer).shape
    random = np.random.default_rng(6)
    found: dict[str, Any] = {}
    for it in statistics_of(cls):
        width = {"inputs": inputs, "outputs": outputs, "gradient": inputs}[it.of]
        n = 2 * width if rows is None else rows
        V = jnp.asarray(random.normal(size=(n, width)), jnp.float32)
        if it.of == "gradient":
            left = jnp.asarray(random.normal(size=(outputs, n)), jnp.float32)
            mean = it.right(left @ V / max(n, 1))
        else:
            mean = it.left(V).T @ it.right(V) / max(n, 1)
        found[it.name] = it.value(mean)
    return found


def split(adapter: Any) -> tuple[PyTree, PyTree]:
    """The adapter's trainable arrays, and the rest."""
    return eqx.partition(adapter, lora_trainable_filter(adapter))


def perturbed(adapter: Any, size: float = 0.3) -> Any:
    """`adapter` with random numbers of this `size` added to its trainable arrays."""
    random = np.random.default_rng(4)

    def moved(leaf: Any) -> Any:
        step = size * random.normal(size=leaf.shape)
        if np.iscomplexobj(leaf):
            step = step + 1j * size * random.normal(size=leaf.shape)
        step = step.astype(leaf.dtype)
        if is_traced(leaf):
            return leaf + step
        # By NumPy: JAX would compile an addition for each shape.
        array = np.asarray(leaf) + step
        is_placed = isinstance(leaf, jax.Array) and leaf.committed
        return jax.device_put(array, leaf.sharding if is_placed else None)

    trainable, frozen = split(adapter)
    return eqx.combine(jax.tree.map(moved, trainable), frozen)


def standard_cases(wrapper: type[LoRAWrapper], layers: Collection[str] = ()) -> list[WrapperCase]:
    """A case for each of the common Equinox layers that `wrapper` claims, or of those in `layers`.

    **Arguments:** `layers`: keys of `standard_layers()`.
    """
    cases: list[WrapperCase] = []
    for layer_name, (base, inputs) in standard_layers().items():
        layer = base(jax.random.key(0))
        if (not layers or layer_name in layers) and claims(wrapper, layer):
            name = f"{wrapper.__name__}-{type(layer).__name__}"
            cases.append(WrapperCase(wrapper, base, inputs, name=name))
    return cases


def _normal(*shape: int) -> Callable[[PRNGKeyArray], tuple[Any, ...]]:
    return lambda key: (jax.random.normal(key, shape),)


def standard_layers() -> dict[str, tuple[Callable[[Any], Any], Callable[[Any], tuple[Any, ...]]]]:
    """For each of the common Equinox layers, functions that make it, and inputs, from a key."""
    return {
        "Linear": (lambda key: eqx.nn.Linear(7, 5, key=key), _normal(7)),
        "Conv1d": (lambda key: eqx.nn.Conv1d(4, 5, 3, padding=1, key=key), _normal(4, 7)),
        "Conv2d": (
            lambda key: eqx.nn.Conv2d(4, 6, (3, 2), stride=2, groups=2, key=key),
            _normal(4, 7, 6),
        ),
        "ConvTranspose1d": (lambda key: eqx.nn.ConvTranspose1d(4, 5, 3, key=key), _normal(4, 7)),
        "Embedding": (
            lambda key: eqx.nn.Embedding(9, 5, key=key),
            lambda key: (jax.random.randint(key, (), 0, 9),),
        ),
        "MultiheadAttention": (
            lambda key: eqx.nn.MultiheadAttention(2, 8, key=key),
            lambda key: 3 * _normal(5, 8)(key),  # queries, keys and values
        ),
        "GRUCell": (
            lambda key: eqx.nn.GRUCell(4, 5, key=key),
            lambda key: (jax.random.normal(key, (4,)), jnp.ones(5)),
        ),
        "LSTMCell": (
            lambda key: eqx.nn.LSTMCell(4, 5, key=key),
            lambda key: (jax.random.normal(key, (4,)), (jnp.ones(5), jnp.ones(5))),
        ),
        "LayerNorm": (lambda key: eqx.nn.LayerNorm(6), _normal(6)),
    }


def _cast(tree: PyTree, dtype: Any) -> PyTree:
    if dtype is None:
        return tree

    def cast(leaf: Any) -> Any:
        return leaf.astype(dtype) if eqx.is_inexact_array(leaf) or is_coded(leaf) else leaf

    return jax.tree.map(cast, tree, is_leaf=is_coded)
