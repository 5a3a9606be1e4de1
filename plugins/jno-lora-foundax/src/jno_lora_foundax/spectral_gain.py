"""A complex gain for each mode of spectral weights."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, PRNGKeyArray

from jno.lora import Term
from jno_lora_zoo import adapter_dtype_for, cited

from ._spectral_adapter import SpectralAdapter, complex_product
from ._sums import narrowed, times


class GainSpectral(SpectralAdapter):
    """A complex gain for each mode of spectral weights.

    Law: `W_k' = (1 + g_k) W_k` for each mode `k`, with `g_k` complex and `= 0`. 2 real parameters
    train for each mode (1 where the matrices are real), of the `2 in out` that the layer has. The
    option `per="output"`, instead of `"mode"`, gives each output channel a gain: `W_k' = diag(1 +
    g_k) W_k`, with `2 out` for each mode. The method has no rank.

    When viscosity or velocity change, the modes of a solution are multiplied by a factor that
    decays with the frequency, and by a phase.

    **Arguments:**

    - `base`, `adapter_dtype`: as for `LoRASpectral`.
    - `per`: `"mode"` for one gain that all channels share, `"output"` for one per output channel.

    **Raises:** `ValueError` for an unknown `per`.

    Papers: Liu et al., "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than
    In-Context Learning", arXiv:2205.05638, whose factors (IA3) are real, for features; Li et al.,
    "Fourier Neural Operator for Parametric Partial Differential Equations", arXiv:2010.08895. The
    gain of modes is ours.
    """

    adapter_fields = ("gain",)
    linear_field = "gain"
    variant = "gain"
    about = cited("2205.05638", "2010.08895", family="scale", formula="2 per mode")

    base: eqx.Module
    # By the name of the family: (parts, *modes, 1 or out).
    gain: dict[str, Float[Array, "_ ... _"]]

    def __init__(
        self, base: eqx.Module, *, key: PRNGKeyArray, adapter_dtype: Any = None, per: str = "mode"
    ):
        if per not in ("mode", "output"):
            raise ValueError(f'`per` must be "mode" or "output", but is {per!r}')
        self.base = base
        self.gain = {}
        for name, W in self._matrices(base).items():
            gains = W.shape[-2] if per == "output" else 1
            dtype = adapter_dtype_for(W, adapter_dtype)
            self.gain[name] = jnp.zeros((*W.shape[:-2], gains), dtype)

    def adapted_matrices(
        self, name: str, W: Float[Array, "parts *modes out in"]
    ) -> Float[Array, "parts *modes out in"]:
        return W + self.change_of_matrices(name, W)

    def change_of_matrices(
        self, name: str, W: Float[Array, "parts *modes out in"]
    ) -> Float[Array, "parts *modes out in"]:
        return complex_product(jnp.multiply, self.gain[name].astype(W.dtype)[..., None], W)

    @classmethod
    def options_of(cls, state: Mapping[str, Array]) -> dict[str, object]:
        has_one_gain = all(gain.shape[-1] == 1 for gain in state.values())
        return {"per": "mode" if has_one_gain else "output"}

    @classmethod
    def sum_of(cls, terms: Sequence[Term], rank: int | None = None) -> Term:
        state: dict[str, Array] = {}
        for name in terms[0].state:
            # A gain for each mode is the same gain for each of its outputs.
            gains = [times(term.state[name], term.weight) for term in terms]
            state[name] = functools.reduce(jnp.add, gains)
        return Term(narrowed(state, terms), None, None)

    def partition_specs(self) -> dict[str, PartitionSpec]:
        specs: dict[str, PartitionSpec] = {}
        for name, family in self._families(self.base).items():
            batch, outputs, _ = family.mesh_axes(self.base)
            last = outputs if self.gain[name].shape[-1] > 1 else None
            specs[f"gain/{name}"] = PartitionSpec(*batch, last)
        return specs
