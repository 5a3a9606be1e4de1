"""The base of all adapters of spectral weights."""

import abc
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Inexact

from jno.lora import LoRAWrapper
from jno_lora_zoo import KindOfLayer, weighted_sum, with_attributes

from ._mode_weights import ModeWeights, advice_to_declare, linear_output_axis, mode_weights_of
from ._sums import times


class SpectralAdapter(KindOfLayer):
    """An adapter of layers with one matrix for each mode. A subclass defines how these change.

    The arrays are real, and their first axis has the real and the imaginary part (real matrices
    have one part), so that optimisers, casts and checkpoints need not handle complex numbers. The
    layer itself is called, with the updated weights.
    """

    # The field in which the change of the matrices is linear.
    linear_field: ClassVar[str | None] = None

    base: Any
    # With weights `(K,)`, arrays of `linear_field` have an axis `K` in front: `with_directions`.
    direction_weights: Float[Array, " K"] | None = eqx.field(default=None, kw_only=True)

    @abc.abstractmethod
    def adapted_matrices(
        self, name: str, W: Float[Array, "parts *modes out in"]
    ) -> Float[Array, "parts *modes out in"]:
        """The adapted matrices of the family `name`, for the matrices `W` of `base`."""

    def change_of_matrices(
        self, name: str, W: Float[Array, "parts *modes out in"]
    ) -> Float[Array, "parts *modes out in"]:
        """The change alone, for a class with a `linear_field`. The default does not read `W`."""
        return self.adapted_matrices(name, jnp.zeros_like(W))

    @classmethod
    def mode_weights(cls, leaf: object) -> Mapping[str, ModeWeights] | None:
        """The families of matrices in `leaf`, by name, or `None`.

        A subclass declares the layers of another library here.
        """
        return mode_weights_of(leaf)

    @classmethod
    def fits(cls, leaf: object) -> bool:
        families = cls._families(leaf).values()
        has_one_stack = len({family.stack_ndim(leaf) for family in families}) == 1
        return has_one_stack and all(family.fits(leaf) for family in families)

    @classmethod
    def misfit(cls, leaf: object) -> str | None:
        families = cls.mode_weights(leaf)
        if families is None:
            return advice_to_declare(leaf)
        return next((why for f in families.values() if (why := f.misfit(leaf))), None)

    @classmethod
    def stack_ndim(cls, leaf: object) -> int:
        return next(iter(cls._families(leaf).values())).stack_ndim(leaf)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The output of the layer with the updated weights, for the same arguments as the layer.

        The weights are updated once for a whole batch, which is cheap compared with the transforms.
        Weights of directions multiply outputs instead, because they may differ in a batch.
        """
        if self.direction_weights is None:
            return self.merge()(*args, **kwargs)  # pyright: ignore[reportCallIssue]
        y = self.base(*args, **kwargs)
        return y + self.weighted_change(self.direction_weights, *args, **kwargs)

    def weighted_change(
        self, weights: Float[Array, " K"], *args: Any, **kwargs: Any
    ) -> Float[Array, "..."]:
        """The sum of what each direction adds to the output, times its weight.

        The layer is linear in its weights, so it is called with the change instead of its weights.
        A compiler shares the transform of the input with the layer.
        """
        field = str(self.linear_field)
        terms: list[Array] = []
        for k, weight in enumerate(weights):
            direction = jax.tree.map(lambda d, k=k: d[k], getattr(self, field))
            alone = with_attributes(self, {field: direction, "direction_weights": None})
            y = _with_fields(alone, self.base, alone._changed_fields)(*args, **kwargs)
            terms.append(times(y, weight).astype(y.dtype))
        return sum(terms[1:], terms[0])

    def with_directions(
        self, directions: Mapping[str, Any], weights: Float[Array, " K"]
    ) -> LoRAWrapper | None:
        """`None` unless the field is `linear_field` and the layer is linear in its weights.

        Layers of foundax's FNOs, GeoFNO and PCNO are linear in their weights.
        """
        # A class with its own law must name the field in which its change is linear.
        author = next(cls for cls in type(self).__mro__ if "adapted_matrices" in vars(cls))
        field = vars(author).get("linear_field")
        if directions.keys() != {field} or linear_output_axis(self.base) is None:
            return None
        return with_attributes(self, {**directions, "direction_weights": weights})

    def summed(self) -> "SpectralAdapter":
        """The same adapter without weights of directions."""
        weights = self.direction_weights
        if weights is None:
            return self
        field = str(self.linear_field)
        sums = jax.tree.map(lambda d: weighted_sum(d, weights), getattr(self, field))
        return with_attributes(self, {field: sums, "direction_weights": None})

    def state(self) -> dict[str, Array]:
        return super().state() if self.direction_weights is None else self.summed().state()

    def merge(self) -> eqx.Module:
        """The layer with the updates in its weights, computed in float32 at least."""
        return _with_fields(self, self.base, self.summed()._adapted_fields)

    def _adapted_fields(self, name: str, family: ModeWeights) -> dict[str, Array]:
        """The arrays of one family with the update, by the layer's field."""
        return family.written(self.base, self.adapted_matrices(name, family.read(self.base)))

    def _changed_fields(self, name: str, family: ModeWeights) -> dict[str, Array]:
        return family.written(self.base, self.change_of_matrices(name, family.read(self.base)))

    @classmethod
    def modulated(cls, layer: eqx.Module, scale: Float[Array, " out"], shift: None) -> eqx.Module:
        """The plain `layer` with the outputs `scale y`, without a shift as it has no bias."""

        def scaled(_: str, family: ModeWeights) -> dict[str, Array]:
            W = family.read(layer)
            return family.written(layer, scale.astype(W.dtype)[:, None] * W)

        return _with_fields(cls, layer, scaled)

    def output_axis(self, *args: object) -> int | None:
        """The axis of the outputs, in layers of foundax that are linear in their weights."""
        return linear_output_axis(self.base)

    @classmethod
    def matrices(cls, layer: object) -> Mapping[str, Array]:
        return {name: as_complex(W) for name, W in cls._matrices(layer).items()}

    @classmethod
    def _matrices(cls, base: object) -> dict[str, Float[Array, "parts *modes out in"]]:
        return {name: family.read(base) for name, family in cls._families(base).items()}

    @classmethod
    def _families(cls, layer: object) -> Mapping[str, ModeWeights]:
        return cls.mode_weights(layer) or {}


def _with_fields(
    cls: SpectralAdapter | type[SpectralAdapter],
    layer: Any,
    fields: Callable[[str, ModeWeights], dict[str, Array]],
) -> Any:
    """`layer` with the arrays that `fields` returns for each of its families."""
    new: dict[str, Array] = {}
    for name, family in cls._families(layer).items():
        new |= fields(name, family)
    return eqx.tree_at(lambda m: [getattr(m, f) for f in new], layer, list(new.values()))


def as_complex(parts: Float[Array, "parts ..."]) -> Inexact[Array, "..."]:
    """The array whose parts are on the first axis, which is real if there is one part."""
    return parts[0] if len(parts) == 1 else lax.complex(parts[0], parts[1])


def parts_of(array: Inexact[Array, "..."]) -> Float[Array, "parts ..."]:
    """The parts of an array on a new first axis, as the inverse of `as_complex`."""
    parts = [jnp.real(array), jnp.imag(array)] if jnp.iscomplexobj(array) else [array]
    return jnp.stack(parts)


def complex_product(
    product: Callable[[Array, Array], Array],
    a: Float[Array, "parts ..."],
    b: Float[Array, "parts ..."],
) -> Float[Array, "parts ..."]:
    """A bilinear product of complex arrays whose parts are on the first axis, or of real arrays."""
    if a.shape[0] == 1:
        return product(a, b)
    real = product(a[0], b[0]) - product(a[1], b[1])
    return jnp.stack([real, product(a[0], b[1]) + product(a[1], b[0])])
