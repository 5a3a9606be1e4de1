"""The linear layers of MPP, which use some rows or columns of their weight in a call."""

from typing import Any

import equinox as eqx
from jaxtyping import Array, Float

from jno_lora_zoo import LayerKind, MeshAxes, at_least_float32, is_float_array, sharded_over

from .._classes import value_for

_CLASSES = {("jax_mpp.avit_eqx", "SubsampledLinear"): True}


class SubsampledLinearLayer(LayerKind):
    """MPP's `SubsampledLinear`: a weight `(dim_out, dim_in)`, called with `(x, labels)`.

    The labels choose the columns (or, without `subsample_in`, the rows) that a call uses. The
    matrix is the whole weight: one adapter for every set of physical fields, of which a call takes
    its part. The layer is called as it is, with the law's weight in it.
    """

    @classmethod
    def fits(cls, leaf: Any) -> bool:
        if not value_for(leaf, _CLASSES):
            return False
        sizes = (leaf.dim_out, leaf.dim_in)
        return is_float_array(leaf.weight) and leaf.weight.shape[-2:] == sizes and 0 not in sizes

    @classmethod
    def stack_ndim(cls, leaf: Any) -> int:
        """The axes of the weight before `(dim_out, dim_in)`."""
        return leaf.weight.ndim - 2

    @classmethod
    def matrix(cls, base: Any) -> Float[Array, "out in"]:
        return at_least_float32(base.weight)

    @classmethod
    def with_matrix(cls, base: Any, matrix: Float[Array, "out in"]) -> eqx.Module:
        return eqx.tree_at(lambda m: m.weight, base, matrix.astype(base.weight.dtype))

    @classmethod
    def mesh_axes(cls, base: Any) -> MeshAxes:
        *stack, outputs, inputs = sharded_over(base.weight)
        return MeshAxes(tuple(stack), outputs, inputs)
