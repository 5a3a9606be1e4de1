"""A low-rank update of spectral weights whose factors all modes share."""

import math
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Inexact, PRNGKeyArray

from jno.lora import Term
from jno_lora_zoo import adapter_dtype_for, cited

from ._mode_weights import ModeWeights
from ._spectral_adapter import SpectralAdapter, as_complex, parts_of
from ._sums import summed


class CPSpectral(SpectralAdapter):
    """A low-rank update of spectral weights whose factors all modes share.

    Law: `W_k' = W_k + (alpha / r) B diag(c_k) A` for each mode `k`, with `A` `(r, in)` complex
    normal, `E|a|^2 = 1/in`, `B` `(out, r)` `= 0` and `c_k` `(r)` complex, `= 1`: a CP decomposition
    of the update of all modes. `2 r (in + out + modes)` real parameters train for each family of
    modes. The rank is not clamped.

    The directions among the channels are the same at all frequencies, weighted for each mode, while
    `LoRASpectral` has to learn directions for each mode from this mode alone.

    **Arguments:** as for `LoRASpectral`, without `bands`.

    Papers: Kossaifi et al., "Multi-Grid Tensorized Fourier Neural Operator for High-Resolution
    PDEs", arXiv:2310.00120, who decompose the weights themselves; Li et al., "Fourier Neural
    Operator for Parametric Partial Differential Equations", arXiv:2010.08895. The update of
    pretrained weights is ours.
    """

    adapter_fields = ("lora_A", "lora_B", "mode_factors")
    variant = "cp"
    linear_field = "lora_B"
    about = cited("2310.00120", "2010.08895", family="low rank", formula="2 r (in + out + modes)")

    base: eqx.Module
    # By the name of the family: (parts, r, in), (parts, out, r) and (parts, *modes, r).
    lora_A: dict[str, Float[Array, "_ r _"]]
    lora_B: dict[str, Float[Array, "_ _ r"]]
    mode_factors: dict[str, Float[Array, "_ ... r"]]
    rank: int = eqx.field(static=True)
    alpha: float = eqx.field(static=True)

    def __init__(
        self, base: Any, rank: int, alpha: float, *, key: PRNGKeyArray, adapter_dtype: Any = None
    ):
        matrices = self._matrices(base)
        self.base, self.rank, self.alpha = base, rank, alpha
        self.lora_A, self.lora_B, self.mode_factors = {}, {}, {}
        keys = jax.random.split(key, len(matrices))
        for family_key, (name, W) in zip(keys, matrices.items(), strict=True):
            n_parts, *modes, outputs, inputs = W.shape
            dtype = adapter_dtype_for(W, adapter_dtype)
            A = jax.random.normal(family_key, (n_parts, rank, inputs), dtype)
            self.lora_A[name] = A / math.sqrt(n_parts * inputs)
            self.lora_B[name] = jnp.zeros((n_parts, outputs, rank), dtype)
            # The real part is 1.
            self.mode_factors[name] = jnp.zeros((n_parts, *modes, rank), dtype).at[0].set(1)

    def adapted_matrices(
        self, name: str, W: Float[Array, "parts *modes out in"]
    ) -> Float[Array, "parts *modes out in"]:
        change = self._change(name, f"{self._families(self.base)[name].modes}oi", W.dtype)
        return W + parts_of(change)

    def _adapted_fields(self, name: str, family: ModeWeights) -> dict[str, Array]:
        # A subclass may have a different law.
        if type(self).adapted_matrices is not CPSpectral.adapted_matrices:
            return super()._adapted_fields(name, family)
        axes = family.axes.replace("p", "")
        return family.added(self.base, self._change(name, axes, family.compute_dtype(self.base)))

    def _change(self, name: str, axes: str, dtype: DTypeLike) -> Inexact[Array, "..."]:
        """The change of one family, with these axes, complex if there are two parts.

        Either `i` or `o` is contracted last: if it is at an end of `axes`, this needs no transpose.
        """
        arrays = (self.lora_A[name], self.lora_B[name], self.mode_factors[name])
        A, B, c = (as_complex(array.astype(dtype)) for array in arrays)
        alone, joined = ("i", "o") if "i" in (axes[0], axes[-1]) else ("o", "i")
        sides = {"i": A, "o": B.T}
        remaining = axes.replace(alone, "")
        # Multiplied by broadcasting, because batched products of single numbers are slower to run
        # and to compile.
        side = jnp.expand_dims(
            sides[joined], [1 + k for k, a in enumerate(remaining) if a != joined]
        )
        c = jnp.expand_dims(jnp.moveaxis(c, -1, 0), 1 + remaining.index(joined))
        product = jnp.einsum(f"r{alone},r{remaining}->{axes}", sides[alone], side * c)
        return self.alpha / self.rank * product

    @classmethod
    def sum_of(cls, terms: Sequence[Term], rank: int | None = None) -> Term:
        axes = {"lora_A": -2, "lora_B": -1, "mode_factors": -1}
        return summed(terms, axes, "lora_B", rank)

    def partition_specs(self) -> dict[str, PartitionSpec]:
        specs: dict[str, PartitionSpec] = {}
        for name, family in self._families(self.base).items():
            batch, outputs, inputs = family.mesh_axes(self.base)
            before_modes = batch[: -len(family.modes)]
            specs[f"lora_A/{name}"] = PartitionSpec(*before_modes, None, inputs)
            specs[f"lora_B/{name}"] = PartitionSpec(*before_modes, outputs, None)
            specs[f"mode_factors/{name}"] = PartitionSpec(*batch, None)
        return specs
