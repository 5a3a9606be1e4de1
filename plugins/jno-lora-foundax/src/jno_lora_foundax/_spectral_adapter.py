"""The base of all adapters of spectral weights."""

import abc
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Inexact

from jno.lora import LoRAWrapper

from ._mode_weights import ModeWeights, mode_weights_of


class SpectralAdapter(LoRAWrapper):
    """An adapter of layers with one matrix for each mode. A subclass says how the matrices change.

    The arrays are real: the first axis has the real and the imaginary part (real matrices have one
    part), so that optimisers, casts and checkpoints need not know of complex numbers. The layer is
    called with the updated weights in it.
    """

    base: eqx.Module

    @abc.abstractmethod
    def adapted_matrices(
        self, name: str, W: Float[Array, "parts *modes out in"]
    ) -> Float[Array, "parts *modes out in"]:
        """The adapted matrices of the family `name`, for the matrices `W` of `base`."""

    @classmethod
    def mode_weights(cls, leaf: Any) -> Mapping[str, ModeWeights] | None:
        """The families of matrices that `leaf` holds, by name, or `None`.

        A subclass declares the layers of another library here.
        """
        return mode_weights_of(leaf)

    @classmethod
    def applies_to(cls, leaf: Any) -> bool:
        try:
            families = (cls.mode_weights(leaf) or {}).values()
            one_stack = len({family.stack_ndim(leaf) for family in families}) == 1
            return one_stack and all(family.fits(leaf) for family in families)
        except Exception:
            # A subclass without those fields is not laid out as declared.
            return False

    @classmethod
    def why_not(cls, leaf: Any) -> str | None:
        try:
            families = (cls.mode_weights(leaf) or {}).values()
            return next((why for family in families if (why := family.misfit(leaf))), None)
        except Exception:
            return None

    @classmethod
    def stack_ndim(cls, leaf: Any) -> int:
        return next(iter(cls._families(leaf).values())).stack_ndim(leaf)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The output of the layer with the updated weights, for the layer's arguments.

        The weights are updated once for a whole batch, which costs little beside the transforms.
        """
        return self.merge()(*args, **kwargs)  # pyright: ignore[reportCallIssue]

    def merge(self) -> eqx.Module:
        """The layer with the updates in its weights, computed in float32 at least."""
        new: dict[str, Array] = {}
        for name, family in self._families(self.base).items():
            new |= family.written(self.base, self.adapted_matrices(name, family.read(self.base)))
        return eqx.tree_at(lambda m: [getattr(m, f) for f in new], self.base, list(new.values()))

    @classmethod
    def matrices(cls, layer: Any) -> Mapping[str, Array]:
        return {name: _as_complex(W) for name, W in cls._matrices(layer).items()}

    @classmethod
    def _matrices(cls, base: eqx.Module) -> dict[str, Float[Array, "parts *modes out in"]]:
        return {name: family.read(base) for name, family in cls._families(base).items()}

    @classmethod
    def _families(cls, layer: Any) -> Mapping[str, ModeWeights]:
        families = cls.mode_weights(layer)
        if families is None:
            raise TypeError(
                f"{cls.__name__} is for layers with declared spectral weights, but was given a "
                f"{type(layer).__name__}"
            )
        return families


def _as_complex(parts: Float[Array, "parts ..."]) -> Inexact[Array, "..."]:
    return parts[0] if len(parts) == 1 else lax.complex(parts[0], parts[1])


def complex_product(
    product: Callable[[Array, Array], Array],
    a: Float[Array, "parts ..."],
    b: Float[Array, "parts ..."],
) -> Float[Array, "parts ..."]:
    """A bilinear product of complex arrays whose parts lie on the first axis, or of real ones."""
    if a.shape[0] == 1:
        return product(a, b)
    real = product(a[0], b[0]) - product(a[1], b[1])
    return jnp.stack([real, product(a[0], b[1]) + product(a[1], b[0])])
