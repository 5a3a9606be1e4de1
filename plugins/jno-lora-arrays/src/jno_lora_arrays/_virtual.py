"""Virtual weights: arrays that stand for the weight of an adapted layer, which is not computed."""

import dataclasses
import functools
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jno.lora import LoRAWrapper, merge_lora
from jno_lora_embedding import EmbeddingLayer
from jno_lora_zoo import LinearLayer, LoRALinear, Method, MiLoRA, PiSSA

# The axes of a weight, by the kind of its layer: o counts its outputs, i its inputs. In front lie
# those of a stack, which are numbered.
_AXES: dict[Any, str] = {LinearLayer: "oi", EmbeddingLayer: "io"}


class Virtual(eqx.Module):
    """The weight of an adapted layer, seen with its axes in some order and in some dtype.

    - `adapter`: the adapter, whose base is one layer or a stack of layers.
    - `axes`: one letter for each axis, in their order here: `o`, `i` and a number for each axis of
        a stack.
    - `name`: the class of the adapter in the model.
    """

    adapter: Any
    axes: str = eqx.field(static=True)
    dtype: Any = eqx.field(static=True)
    name: str = eqx.field(static=True)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape with the axes in their order here."""
        shape = self.adapter.base.weight.shape
        return tuple(shape[place] for place in self._places())

    def dense(self) -> Array:
        """The merged weight itself."""
        return self._seen(merge_lora(self.adapter).weight)

    def base(self) -> Array:
        """The weight of the base."""
        return self._seen(self.adapter.base.weight)

    def factors(self) -> "Factors | None":
        """The factors of `W' = W + B A` for the base's `W`, if the update is that. Stacked too."""
        find = _factors
        for _ in range(len(self.axes) - 2):
            find = jax.vmap(find)
        return find(self.adapter)

    def can_be_scanned(self) -> bool:
        """Whether the first axis is that of a stack, and of all arrays of the adapter."""
        return self.axes[0] == "0"

    def slice_of(self, axes: str) -> "Virtual":
        """One slice of a scanned weight, whose adapter holds the slice already."""
        return dataclasses.replace(self, axes=_without_stack_axis(axes, 0))

    def part(self, axis: int, start: Any, size: int) -> "Virtual | None":
        """`size` places of an axis, from `start` on; `None` if that needs factors and has none.

        Some rows or columns of `W + B A` are those of `W`, and of `B` or `A`: a LoRA again.
        """
        letter = self.axes[axis]
        cut = functools.partial(lax.dynamic_slice_in_dim, start_index=start, slice_size=size)
        if letter not in "io":
            cut_all = functools.partial(jax.tree.map, functools.partial(cut, axis=int(letter)))
            return dataclasses.replace(self, adapter=_on_arrays(cut_all, self.adapter))
        factors = self.factors()
        if factors is None:
            return None
        as_stored = dataclasses.replace(self, dtype=self.adapter.base.weight.dtype)
        order = tuple(self.axes.index(a) for a in (*sorted(self.axes)[:-2], "o", "i"))
        W, (A, B) = as_stored.transposed(order).base(), factors
        if letter == "o":
            W, B = cut(W, axis=-2), cut(B, axis=-2)
        else:
            W, A = cut(W, axis=-1), cut(A, axis=-1)
        rank = A.shape[-2]
        lora = {"lora_A": A, "lora_B": B, "rank": rank, "alpha": float(rank)}
        absent = dict.fromkeys(("multiplier", "dropout", "bias_update"))
        adapter = _without_init(LoRALinear, base=_linear(W), **lora, **absent)
        return dataclasses.replace(self, adapter=adapter)

    def single(self, axis: int) -> "Virtual":
        """Without an axis of a stack of one."""
        place = int(self.axes[axis])
        squeeze = functools.partial(jax.tree.map, functools.partial(jnp.squeeze, axis=place))
        axes = _without_stack_axis(self.axes.replace(str(place), ""), place)
        return dataclasses.replace(self, adapter=_on_arrays(squeeze, self.adapter), axes=axes)

    def transposed(self, order: tuple[int, ...]) -> "Virtual":
        """This weight with its axes in another order."""
        axes = "".join(self.axes[axis] for axis in order)
        return dataclasses.replace(self, axes=axes)

    def cast(self, dtype: Any) -> "Virtual":
        """This weight in another dtype."""
        return dataclasses.replace(self, dtype=dtype)

    def _places(self) -> list[int]:
        """For each axis here, its place in the weight as it is stored."""
        own = _axes_of(self.adapter)
        return [own.index(axis) for axis in self.axes]

    def _seen(self, weight: Array) -> Array:
        """A weight as it is stored, with the axes in their order here, in the dtype here."""
        return weight.transpose(self._places()).astype(self.dtype)


def virtual(adapter: Any) -> Virtual | None:
    """The weight of an adapter, if the products with it are known."""
    # A subclass may lay out the matrix, or merge, in another way.
    kind = next((kind for kind in _AXES if isinstance(adapter, kind)), None)
    if kind is None or not isinstance(adapter, Method):
        return None
    cls = type(adapter)
    base: Any = adapter.base
    is_usual = (cls.matrix.__func__, cls.with_matrix.__func__, cls.merge) == (
        kind.matrix.__func__,
        kind.with_matrix.__func__,
        Method.merge,
    )
    if not is_usual:
        return None
    return Virtual(adapter, _axes_of(adapter), base.weight.dtype, cls.__name__)


def _axes_of(adapter: Any) -> str:
    axes = next(axes for kind, axes in _AXES.items() if isinstance(adapter, kind))
    return "".join(map(str, range(adapter.base.weight.ndim - 2))) + axes


def _without_stack_axis(axes: str, place: int) -> str:
    """The letters once a stack has lost its axis of that number."""
    return "".join(a if a in "io" or int(a) < place else str(int(a) - 1) for a in axes)


def _on_arrays(f: Any, adapter: Any) -> Any:
    arrays, rest = eqx.partition(adapter, eqx.is_array)
    return eqx.combine(f(arrays), rest)


def times_inputs(adapter: Any, x: Array) -> Array | None:
    """`W' x` for vectors `(n, in)`, in their dtype; `None` if the adapter has no fast path."""
    linear = _as_linear(adapter, x.dtype)
    if not linear.has_fast_path():
        return None
    return jax.vmap(linear.forward)(x)


def times_outputs(adapter: Any, y: Array) -> Array | None:
    """`W'ᵀ y` for vectors `(n, out)`, as `times_inputs`."""
    linear = _as_linear(adapter, y.dtype)
    if not linear.has_fast_path():
        return None
    x = jax.ShapeDtypeStruct((linear.base.in_features,), y.dtype)
    dtype = jax.eval_shape(linear.forward, x).dtype
    transposed = jax.linear_transpose(linear.forward, x)
    return jax.vmap(lambda row: transposed(row)[0])(y.astype(dtype))


def columns(adapter: Any, index: Array) -> Array | None:
    """The columns of `W'` at a vector of indices, `(n, out)`."""
    table = _matrix_as_stored(adapter).T
    base = _without_init(
        eqx.nn.Embedding, weight=table, num_embeddings=table.shape[0], embedding_size=table.shape[1]
    )
    lookup = _as_kind(adapter, EmbeddingLayer, base)
    return jax.vmap(lookup.forward)(index) if lookup.has_fast_path() else None


class Factors(NamedTuple):
    """`A` `(r, in)` and `B` `(out, r)` of an update `B A`, its scale included."""

    A: Array
    B: Array


def _factors(adapter: Any) -> Factors | None:
    if isinstance(adapter, PiSSA | MiLoRA):
        # `low_rank_update` counts from the original weight, and the base holds the residual.
        return Factors(adapter.lora_A, adapter.scaling * adapter.lora_B)
    if type(adapter).unwrap is not LoRAWrapper.unwrap:
        return None
    update = adapter.low_rank_update()
    return None if update is None else Factors(*update)


def _as_linear(adapter: Any, dtype: Any) -> Any:
    """The adapter around a linear layer with the same matrix, in a dtype, without a bias."""
    return _as_kind(adapter, LinearLayer, _linear(_matrix_as_stored(adapter).astype(dtype)))


def _linear(matrix: Array) -> Any:
    """The linear layer with this matrix, or the stack of them."""
    sizes = {"in_features": matrix.shape[-1], "out_features": matrix.shape[-2]}
    return _without_init(eqx.nn.Linear, weight=matrix, bias=None, use_bias=False, **sizes)


def _matrix_as_stored(adapter: Any) -> Array:
    """The `(out, in)` matrix of the base, in its own dtype."""
    weight = adapter.base.weight
    return weight.T if isinstance(adapter, EmbeddingLayer) else weight


def _as_kind(adapter: Any, kind: type, base: Any) -> Any:
    fields = {f.name: getattr(adapter, f.name) for f in dataclasses.fields(adapter)}
    return _without_init(_class_of(type(adapter), kind), **{**fields, "base": base})


@functools.lru_cache(maxsize=256)
def _class_of(cls: type[Method], kind: type) -> type:
    """The method of `cls` on another kind of layer. Its random factors keep their variance."""
    method: Any = next(
        c
        for c in cls.__mro__
        if issubclass(c, Method) and getattr(c.fits, "__isabstractmethod__", False)
    )
    fan_in = classmethod(lambda _, W: cls.fan_in(W))
    return type(method.__name__, (method, kind), {"fan_in": fan_in, "__module__": __name__})


def _without_init(cls: type, **fields: Any) -> Any:
    """An instance of an Equinox module with these fields."""
    module = object.__new__(cls)
    for name, value in fields.items():
        object.__setattr__(module, name, value)
    return module
