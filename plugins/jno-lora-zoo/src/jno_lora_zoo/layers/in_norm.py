"""Layers inside `eqx.nn.WeightNorm` and `eqx.nn.SpectralNorm`."""

from typing import Any, TypeGuard

import equinox as eqx
from jaxtyping import Array

from .._arrays import Matrix
from .._layer_kind import Bias, LayerKind, MeshAxes
from .._method import Method
from .conv import ConvLayer, ConvTransposeLayer
from .linear import LinearLayer

Norm = eqx.nn.WeightNorm | eqx.nn.SpectralNorm
_INSIDE: tuple[type[LayerKind], ...] = (LinearLayer, ConvLayer, ConvTransposeLayer)


class InNormLayer(LayerKind):
    """A `WeightNorm` or `SpectralNorm` around a linear or convolution layer, adapted as one.

    The matrix is the inner layer's matrix, so the norm acts on the adapted weight: `g W' / ||W'||`
    for `WeightNorm`, `W' / sigma(W')` for `SpectralNorm`. An adapter on the inner layer is refused,
    because the norm would rescale or bypass it.

    `WeightNorm` with its default `axis=0` removes the scale of each row, as does any norm of a
    single row. IA³ on outputs is refused there, because it only scales rows of the weight, and the
    magnitude of DoRA has no effect.
    """

    @classmethod
    def fits(cls, leaf: object) -> bool:
        scales_rows_only = issubclass(cls, Method) and cls.scales_rows_only
        return _is_normed(leaf) and not (scales_rows_only and _norms_rows(leaf))

    @classmethod
    def misfit(cls, leaf: object) -> str | None:
        if not isinstance(leaf, Norm):
            return None
        if _is_normed(leaf) and issubclass(cls, Method) and cls.scales_rows_only:
            return (
                "the norm takes the scale of each row out again, which is all that "
                f"{cls.method.__name__} changes in the weight"
            )
        return (
            f"it norms {leaf.weight_name!r} of a {type(leaf.layer).__name__}, not the weight of a "
            "linear or convolution layer"
        )

    @classmethod
    def stack_ndim(cls, leaf: Any) -> int:
        return _kind(leaf).stack_ndim(leaf.layer)

    @classmethod
    def matrix(cls, layer: Norm) -> Matrix:
        return _kind(layer).matrix(layer.layer)

    @classmethod
    def with_matrix(cls, base: Norm, matrix: Matrix) -> eqx.Module:
        layer = _kind(base).with_matrix(base.layer, matrix)
        return eqx.tree_at(lambda norm: norm.layer, base, layer)

    @classmethod
    def inputs_of(cls, layer: Norm, *args: Any, **kwargs: Any) -> Array:
        return _kind(layer).inputs_of(layer.layer, *args)

    @classmethod
    def outputs_of(cls, layer: Norm, y: Any) -> Array:
        # A `SpectralNorm` returns its state, too.
        return _kind(layer).outputs_of(layer.layer, y[0] if isinstance(y, tuple) else y)

    @classmethod
    def bias_of(cls, layer: Norm) -> Bias | None:
        return _kind(layer).bias_of(layer.layer)

    @classmethod
    def replace_bias(cls, base: Norm, bias: Bias) -> eqx.Module:
        layer = _kind(base).replace_bias(base.layer, bias)
        return eqx.tree_at(lambda norm: norm.layer, base, layer)

    @classmethod
    def mesh_axes(cls, base: Norm) -> MeshAxes:
        return _kind(base).mesh_axes(base.layer)


def _is_normed(leaf: object) -> TypeGuard[Norm]:
    return (
        isinstance(leaf, Norm)
        and leaf.weight_name == "weight"
        and any(kind.applies_to(leaf.layer) for kind in _INSIDE)
    )


def _norms_rows(norm: Norm) -> bool:
    """Whether the adapted `norm` removes the scale of each output's row."""
    has_one_row = norm.layer.weight.shape[InNormLayer.stack_ndim(norm)] == 1
    return has_one_row or (isinstance(norm, eqx.nn.WeightNorm) and norm.axis == 0)


def _kind(norm: Norm) -> type[LayerKind]:
    kind = next((kind for kind in _INSIDE if kind.applies_to(norm.layer)), None)
    if kind is None:  # a template of `filter_eval_shape`, or a norm that was changed
        raise TypeError(
            f"expected a linear or convolution layer in the {type(norm).__name__}, got {norm.layer}"
        )
    return kind
