"""The linear layers of MPP, which use some rows or columns of their weight in a call."""

from typing import Any

from jno_lora_zoo import LinearLayer, is_float_array

from .._classes import value_for

_CLASSES = {("jax_mpp.avit_eqx", "SubsampledLinear"): True}


class SubsampledLinearLayer(LinearLayer):
    """MPP's `SubsampledLinear`: a weight `(dim_out, dim_in)`, called with `(x, labels)`.

    The labels choose the columns (or, without `subsample_in`, the rows) that a call uses. The
    matrix is the whole weight: one adapter for every set of physical fields. A call takes its
    part of it. The layer is called as it is, with the law's weight in it.
    """

    @classmethod
    def fits(cls, leaf: Any) -> bool:
        if not value_for(leaf, _CLASSES):
            return False
        sizes = (leaf.dim_out, leaf.dim_in)
        return is_float_array(leaf.weight) and leaf.weight.shape[-2:] == sizes and 0 not in sizes
