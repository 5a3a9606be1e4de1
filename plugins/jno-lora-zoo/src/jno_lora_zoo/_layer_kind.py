"""The operations that a method may ask of a layer, whatever kind of layer it is."""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
from jaxtyping import Array, Float

from jno.lora import LoRAWrapper


class MeshAxes(NamedTuple):
    """The mesh axes of a sharded weight: those of a stack, of its outputs and of its inputs."""

    stack: tuple[Any, ...]
    outputs: Any
    inputs: Any


def unchanged(y: Array) -> Array:
    """`y` itself: the map that `LayerKind.product` applies unless it is given another."""
    return y


class LayerKind(LoRAWrapper):
    """One kind of layer: its `(out, in)` matrix `W`, and its linear map in pieces. No parameters.

    A subclass says which layers are of its kind (`fits`), where their weight lies (`stack_ndim`,
    `mesh_axes`), and defines these operations, each by the equation that it satisfies:

    | operation | equation |
    |---|---|
    | `matrix(layer)` | `W` |
    | `with_matrix(base, W)` | `matrix(with_matrix(base, W)) == W`, to the rounding of the weight |
    | `product(x, A, B, ...)` | `W x`; given factors, `(W + B A) x` |
    | `down(x, A)`, `up(h, B)` | `up(down(x, A), B) == (B A) x` |
    | `on_output(x, f, p)` | `f(W, p) x`, for an `f` that is linear along the rows of `W` |
    | `kronecker(x, A, B)` | `(W + crop(A ⊗ B)) x` |
    | `finish(y)` | `finish(product(x)) == base(x)` |

    A law needs `matrix` and `with_matrix` only. The others make fast paths, and are called only if
    `computes(x)`: every other layer, whose `__call__` may do more than the kind knows, gets the
    law's matrix and is called itself. So a kind without fast paths defines the first two alone.

    `x` is the layer's input: features, or the index of a lookup. Arrays of features carry the
    output axis (`y`) or the rank axis (`h`) *first*, whatever axes follow. Operations cast the
    adapter's arrays to the dtype of the features.
    """

    @classmethod
    def applies_to(cls, leaf: Any) -> bool:
        """Whether `leaf` is a layer of this kind, by `fits`. Never raises."""
        # Every node of a model is asked about, and `isinstance` is slow for modules.
        cls_of_leaf = type(leaf)
        if not issubclass(cls_of_leaf, eqx.Module) or issubclass(cls_of_leaf, LoRAWrapper):
            return False
        try:
            return bool(cls.fits(leaf))
        except Exception:
            # A look-alike whose attributes mean something else (arrays for sizes, a property that
            # raises) is not of this kind. The rest of the model can be adapted all the same.
            return False

    @classmethod
    @abc.abstractmethod
    def fits(cls, leaf: Any) -> bool:
        """Whether the module `leaf`, not adapted yet, is a layer of this kind."""

    @classmethod
    def why_not(cls, leaf: Any) -> str | None:
        """Why `leaf`, which looks like a layer of this kind, is not one. Never raises."""
        try:
            return cls.misfit(leaf)
        except Exception:
            return None

    @classmethod
    def misfit(cls, leaf: Any) -> str | None:
        """For a module that does not fit: the reason, or `None` if it is far off."""
        return None

    @classmethod
    @abc.abstractmethod
    def mesh_axes(cls, base: eqx.Module) -> MeshAxes:
        """The mesh axes that the weight is sharded over."""

    @classmethod
    def fan_in(cls, W: Float[Array, "out in"]) -> int:
        """How many inputs one output sums over, which sets the variance of random factors."""
        return W.shape[1]

    @classmethod
    def group_size(cls, base: eqx.Module) -> int | None:
        """How many outputs in a row see the same inputs. `None`: all outputs see all inputs."""
        return None

    def computes(self, x: Any) -> bool:
        """Whether the operations reproduce the base's own `__call__` for the input `x`."""
        return False

    @classmethod
    @abc.abstractmethod
    def matrix(cls, layer: eqx.Module) -> Float[Array, "out in"]:
        """`W`: the weight as an `(out, in)` matrix, in float32 at least."""

    @classmethod
    @abc.abstractmethod
    def with_matrix(cls, base: eqx.Module, matrix: Float[Array, "out in"]) -> eqx.Module:
        """`base` with `matrix` as its weight, cast to the weight's own dtype."""

    def product(
        self,
        x: Any,
        A: Float[Array, "r in"] | None = None,
        B: Float[Array, "out r"] | None = None,
        between: Callable[[Array], Array] = unchanged,
        after: Callable[[Array], Array] = unchanged,
    ) -> Array:
        """`W x`, without the bias. With factors: `(W + after(B between(A))) x`.

        **Arguments:**

        - `between`: a map that is linear along the rank axis.
        - `after`: a map that is linear along the output axis, and scales its entries only.

        A kind applies the two to features or to the factors, whichever is cheaper.
        """
        raise NotImplementedError

    def down(self, x: Any, A: Float[Array, "r in"]) -> Array:
        """`h = A x`: the first half of a low-rank product."""
        raise NotImplementedError

    def up(self, h: Array, B: Float[Array, "out r"]) -> Array:
        """`y = B h`: the second half of a low-rank product."""
        raise NotImplementedError

    def on_output(self, x: Any, f: Callable[[Array, Any], Array], p: Any) -> Array:
        """`f(W x, p)`, for parameters `p` and an `f` that is linear along the output axis.

        `f` may be applied to the rows of `W` instead: it must not mix outputs of two groups.
        """
        return f(self.product(x), p)

    def kronecker(self, x: Any, A: Float[Array, "r r"], B: Float[Array, "p q"]) -> Array:
        """`(W + A ⊗ B) x`, the Kronecker product cut to the inputs and outputs of the layer."""
        raise NotImplementedError

    def finish(self, y: Array) -> Array:
        """`y` with the bias, in the shape and dtype that the layer returns."""
        raise NotImplementedError
