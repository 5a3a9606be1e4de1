"""FiLM for adapters: a scale and a shift for each output, as functions of the parameter."""

import functools
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jno.lora import LoRAWrapper, MatrixAdapter, SelectionError
from jno.lora.extending import adapted_layers, compute_dtype, over_stack, with_arrays


class Film(eqx.Module):
    """Trained directions of the scale and the shift of the outputs of one layer.

    Paper: Perez et al., "FiLM: Visual Reasoning with a General Conditioning Layer",
    arXiv:1709.07871.
    """

    scale: Float[Array, "K *stack out"]
    shift: Float[Array, "K *stack out"] | None  # `None` for a layer without a bias


def film_of(model: PyTree, size: int) -> dict[str, Film]:
    """By path, zeros for each adapted layer of `model` whose adapter can be modulated.

    These are adapters of the zoo with one matrix, and adapters of spectral weights.

    **Raises:** `SelectionError` if no adapter can be modulated.
    """
    films: dict[str, Film] = {}
    for path, adapter in adapted_layers(model):
        if type(adapter).mergeable and hasattr(type(adapter), "modulated"):
            form, has_bias = _outputs(adapter)
            zeros = jnp.zeros((size, *form.shape), form.dtype)
            films[path] = Film(zeros, jnp.zeros_like(zeros) if has_bias else None)
    if not films:
        raise SelectionError(
            "`film=True` scales and shifts the outputs of layers, but no adapter of this net "
            "defines the axis of its outputs. Adapt linear layers, convolutions or spectral "
            "weights by methods of the zoo, or leave out `film=True`."
        )
    return films


def _outputs(adapter: Any) -> tuple[jax.ShapeDtypeStruct, bool]:
    """The form of an array with one number per output, and whether the outputs have a bias."""
    cls = MatrixAdapter.of(type(adapter))

    def rows(layer: Any) -> tuple[Array, Array | None]:
        matrices = cls.matrices(layer) or {"": cls.matrix(layer)}
        first: Any = next(iter(matrices.values()))
        bias = cls.bias_of(layer) if hasattr(cls, "bias_of") else None
        numbers = first.real.reshape(-1, *first.shape[-2:])[0, :, 0]
        return numbers.astype(compute_dtype(numbers)), bias

    stack = type(adapter).stack_ndim(adapter.base)
    form, bias = eqx.filter_eval_shape(over_stack(rows, stack), adapter.base)
    return form, bias is not None


class Modulated(LoRAWrapper):
    """An adapted layer whose output `y` becomes `scale y + shift`.

    Law: `W' = diag(scale) W_adapted`, `b' = scale b_adapted + shift`. A layer without a bias gets
    only the scale, so that the merged layer has the structure of the plain layer.

    `modulated_class` gives the subclass for a class of adapters.
    """

    adapter_fields = ("adapter", "scale", "shift")
    of: ClassVar[type[LoRAWrapper]]  # the class of the adapter

    base: Any
    adapter: Any  # without its base, which would be stored twice
    scale: Float[Array, "*stack out"]
    shift: Float[Array, "*stack out"] | None

    @classmethod
    def applies_to(cls, leaf: Any) -> bool:
        return False  # only `at` makes it

    @classmethod
    def stack_ndim(cls, leaf: Any) -> int:
        return cls.of.stack_ndim(leaf)

    @property
    def whole_adapter(self) -> Any:
        """The adapter around its base."""
        return eqx.tree_at(lambda a: a.base, self.adapter, self.base, is_leaf=lambda x: x is None)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        adapter = self.whole_adapter
        axis = adapter.output_axis(*args)
        if axis is None:
            return with_arrays(self).merge()(*args, **kwargs)  # pyright: ignore[reportCallIssue]
        y = adapter(*args, **kwargs)
        # An output without an axis, or with several axes for the rows of the matrix, is a vector.
        outputs = y if jnp.shape(y)[axis:][:1] == self.scale.shape else y.reshape(-1)
        shape = [1] * outputs.ndim
        shape[axis] = -1
        # In half precision, a scale near 1 would round to 1.
        wide = compute_dtype(y)
        modulated = outputs.astype(wide) * self.scale.astype(wide).reshape(shape)
        if self.shift is not None:
            modulated += self.shift.astype(wide).reshape(shape)
        return modulated.astype(y.dtype).reshape(y.shape)

    def merge(self) -> eqx.Module:
        cls: Any = self.of
        return cls.modulated(self.whole_adapter.merge(), self.scale, self.shift)

    def unwrap(self) -> eqx.Module:
        return self.whole_adapter.unwrap()

    def penalty(self) -> Array:
        return self.whole_adapter.penalty()


@functools.cache
def modulated_class(cls: type[LoRAWrapper]) -> type[Modulated]:
    """`Modulated` for adapters of this class."""
    return type(f"Modulated{cls.__name__}", (Modulated,), {"of": cls, "__module__": __name__})


def modulate(adapter: LoRAWrapper, film: Film, phi: Float[Array, " K"]) -> Modulated:
    """The adapter with the scale `1 + phi gamma` and the shift `phi beta`."""
    at_z: Film = jax.tree.map(lambda d: jnp.tensordot(phi.astype(d.dtype), d, axes=1), film)
    without_base = eqx.tree_at(lambda a: a.base, adapter, None)
    cls: Any = modulated_class(type(adapter))
    return cls(adapter.base, without_base, 1 + at_z.scale, at_z.shift)
