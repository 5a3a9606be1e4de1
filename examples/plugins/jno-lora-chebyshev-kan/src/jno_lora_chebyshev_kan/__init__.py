"""ChebyshevKAN: a kind of layer, with an adapter for every method of the zoo. Edit this file."""

import equinox as eqx

import jno_lora_zoo as zoo
from jno_lora_chebyshev_kan.kan import ChebyshevKAN as ChebyshevKAN


class ChebyshevKANLayer(zoo.LayerKind):
    """A Kolmogorov-Arnold layer, whose matrix `(out, in (degree + 1))` multiplies the polynomials.

    A method therefore adapts the functions on all edges, and an update of rank 1 adds one function
    of each input, weighted for each output.
    """

    @classmethod
    def fits(cls, leaf):
        return type(leaf) is ChebyshevKAN and zoo.is_float_array(leaf.coefficients)

    @classmethod
    def stack_ndim(cls, leaf):
        return leaf.coefficients.ndim - 3

    @classmethod
    def matrix(cls, layer):
        return zoo.in_compute_dtype(layer.coefficients).reshape(len(layer.coefficients), -1)

    @classmethod
    def with_matrix(cls, base, matrix):
        new = zoo.cast_like(matrix, base.coefficients).reshape(base.coefficients.shape)
        return eqx.tree_at(lambda layer: layer.coefficients, base, new)

    @classmethod
    def mesh_axes(cls, base):
        # The inputs and the degrees share an axis of the matrix.
        *stack, outputs, _, _ = zoo.sharded_over(base.coefficients)
        return zoo.MeshAxes(tuple(stack), outputs, None)

    @classmethod
    def inputs_of(cls, layer, x):
        return super().inputs_of(layer, layer.basis(x))

    # From here on for speed: without these, each step computes the adapted matrix.
    def computes(self, x):
        return True

    def vector(self, x):
        return self.base.basis(x)

    def product(self, x, before=zoo.unchanged):
        return self.base(x)


# The adapters LoRAChebyshevKAN, DoRAChebyshevKAN, ..., found by `wrapper="lora"`, `wrapper="dora"`.
globals().update(zoo.adapters_for(ChebyshevKANLayer, __name__))
