"""Adapters for the spectral weights of Fourier neural operators, with an update for each mode."""

import abc
import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from jno.lora import LoRAWrapper, Term
from jno_lora_zoo import adapter_dtype_for, cited

from ._spectral_adapter import SpectralAdapter, complex_product, parts_of
from ._sums import joined, narrowed


class SpectralLowRank(SpectralAdapter):
    """`W_k' = W_k + s B_k A_k` for each mode `k`, with a scale `s` that the subclasses define.

    The option `bands` gives ranks by frequency, as in `LoRASpectral`.
    """

    adapter_fields = ("lora_A", "lora_B")
    linear_field = "lora_B"

    base: eqx.Module
    # By family: (parts, *modes, r, in) and (parts, *modes, out, r). With bands, by family and band,
    # `weight_below_4`, and the modes of a band lie on one axis.
    lora_A: dict[str, Float[Array, "_ ... r _"]]
    lora_B: dict[str, Float[Array, "_ ... r"]]
    rank: int = eqx.field(static=True)
    alpha: float = eqx.field(static=True)

    def __init__(
        self,
        base: eqx.Module,
        rank: int,
        alpha: float,
        *,
        key: PRNGKeyArray,
        adapter_dtype: Any = None,
        bands: Any = None,
    ):
        matrices = self._matrices(base)
        most = min(size for W in matrices.values() for size in W.shape[-2:])
        self.base, self.alpha, self.rank = base, alpha, min(most, rank)
        ranks = None if bands is None else _checked_bands(bands, rank)
        self.lora_A, self.lora_B = {}, {}
        keys = jax.random.split(key, len(matrices))
        for family_key, (name, W) in zip(keys, matrices.items(), strict=True):
            n_parts, *modes, outputs, inputs = W.shape
            dtype = adapter_dtype_for(W, adapter_dtype)
            sizes, array_keys = {name: (modes, self.rank)}, [family_key]
            if ranks is not None:
                bands_modes = self._band_modes(name, W.shape, sorted(ranks))
                sizes = {
                    f"{name}{_BELOW}{end}": ([len(modes)], min(most, ranks[end]))
                    for end, modes in bands_modes.items()
                }
                array_keys = jax.random.split(family_key, len(sizes))
            for array_key, (array, (batch, r)) in zip(array_keys, sizes.items(), strict=True):
                # The parts share the variance: E|a|^2 = 1/in.
                A = jax.random.normal(array_key, (n_parts, *batch, r, inputs), dtype)
                self.lora_A[array] = A / math.sqrt(n_parts * inputs)
                self.lora_B[array] = jnp.zeros((n_parts, *batch, outputs, r), dtype)

    @classmethod
    @abc.abstractmethod
    def scale_of(cls, rank: int, alpha: float) -> float:
        """The factor `s` of an update of this rank."""

    def adapted_matrices(
        self, name: str, W: Float[Array, "parts *modes out in"]
    ) -> Float[Array, "parts *modes out in"]:
        if name in self.lora_A:
            return W + self._update(name, W.dtype)
        ends = sorted({int(array.rpartition(_BELOW)[2]) for array in self.lora_A})
        new = W.reshape(W.shape[0], -1, *W.shape[-2:])
        for end, modes in self._band_modes(name, W.shape, ends).items():
            new = new.at[:, modes].add(self._update(f"{name}{_BELOW}{end}", W.dtype))
        return new.reshape(W.shape)

    @classmethod
    def options_of(cls, state: Mapping[str, Array]) -> dict[str, object]:
        bands = {
            int(field.rpartition(_BELOW)[2]): A.shape[-2]
            for field, A in state.items()
            if field.startswith("lora_A/") and _BELOW in field
        }
        return {"bands": bands} if bands else {}

    @classmethod
    def sum_of(cls, terms: Sequence[Term], rank: int | None = None) -> Term:
        """The rank is the sum of the ranks, but at most the smaller side of the matrices."""

        def factor(term: Term, name: str) -> ArrayLike:
            return term.weight * cls.scale_of(term.state[name].shape[-1], term.alpha)

        first = terms[0].state
        arrays = [name.partition("/")[2] for name in first if name.startswith("lora_A/")]
        sides = [(first[f"lora_B/{n}"].shape[-2], first[f"lora_A/{n}"].shape[-1]) for n in arrays]
        most = min(map(min, sides))
        total = sum(term.rank for term in terms)
        rank = min(most, max(total, rank or 0))
        axes = {"lora_A": -2, "lora_B": -1}
        state = joined(terms, axes, "lora_B", factor, more=rank - total)
        for name in arrays:
            A, B = _cut_to(most, state[f"lora_A/{name}"], state[f"lora_B/{name}"])
            B = B / cls.scale_of(A.shape[-2], float(rank))
            state |= {f"lora_A/{name}": A, f"lora_B/{name}": B}
        return Term(narrowed(state, terms), rank, float(rank))

    def partition_specs(self) -> dict[str, PartitionSpec]:
        """`A` and `B` are sharded like their family's weight, except the modes of a band."""
        specs: dict[str, PartitionSpec] = {}
        families = self._families(self.base)
        for array in self.lora_A:
            family = families[array if array in families else array.rpartition(_BELOW)[0]]
            batch, outputs, inputs = family.mesh_axes(self.base)
            if array not in families:
                batch = (*batch[: -len(family.modes)], None)
            specs[f"lora_A/{array}"] = PartitionSpec(*batch, None, inputs)
            specs[f"lora_B/{array}"] = PartitionSpec(*batch, outputs, None)
        return specs

    def _update(self, array: str, dtype: DTypeLike) -> Array:
        B, A = self.lora_B[array].astype(dtype), self.lora_A[array].astype(dtype)
        return self.scale_of(A.shape[-2], self.alpha) * complex_product(jnp.matmul, B, A)

    def _band_modes(
        self, name: str, shape: tuple[int, ...], ends: list[int]
    ) -> dict[int, np.ndarray]:
        """The modes of each band that is not empty, as indices of all modes, by the band's end."""
        frequency = self._families(self.base)[name].frequency
        if frequency is None:
            raise ValueError(
                "`bands` are bands of frequencies, but the frequencies of the modes of "
                f"{name!r} of a {type(self.base).__name__} are unknown: leave out `bands` here"
            )
        height = frequency(shape[1:-2]).ravel()
        bands = zip([0, *ends], ends, strict=False)
        modes = {end: np.flatnonzero((height >= start) & (height < end)) for start, end in bands}
        return {end: indices for end, indices in modes.items() if indices.size}


_BELOW = "_below_"


def _cut_to(most: int, A: Array, B: Array) -> tuple[Array, Array]:
    """Factors of the same products with at most `most` directions.

    **Raises:** `ValueError` if the products may need more.
    """
    if A.shape[-2] <= most:
        return A, B
    outputs, inputs = B.shape[-2], A.shape[-1]
    if min(outputs, inputs) > most:
        raise ValueError(
            f"the sum has rank {A.shape[-2]}, but the smallest matrices of the layer allow {most}"
        )
    product = complex_product(jnp.matmul, B, A)
    # The complex identity: its imaginary part is zero.
    shape = (*product.shape[:-2], most, most)
    identity = jnp.broadcast_to(jnp.eye(most, dtype=product.dtype), shape).at[1:].set(0)
    return (product, identity) if outputs <= inputs else (identity, product)


def _checked_bands(bands: Any, rank: int) -> dict[int, int]:
    """The rank of each band. **Raises:** `ValueError` unless positive integers up to `rank`."""
    try:
        ranks = {operator.index(end): operator.index(r) for end, r in bands.items()}
    except (AttributeError, TypeError):  # no dict, or no integers
        ranks = {}
    if not ranks or min(*ranks, *ranks.values()) < 1 or max(ranks.values()) > rank:
        raise ValueError(
            "`bands` must give ranks by the frequency that a band ends before, such as "
            f"{{4: 8, 12: 2}}: integers from 1, and the ranks at most rank={rank}, but is {bands!r}"
        )
    return ranks


class LoRASpectral(SpectralLowRank):
    """LoRA for spectral weights: a complex low-rank update of the matrix of each mode.

    An FNO layer multiplies each mode `k` that it uses, of its input's Fourier transform, with a
    complex matrix `W_k` `(out, in)`.

    Law: `W_k' = W_k + (alpha / r) B_k A_k`, with `A_k` `(r, in)` complex normal, `E|a|^2 = 1/in`,
    and `B_k` `(out, r)` `= 0`. `r = min(rank, in, out)`. `2 r (in + out)` real parameters train for
    each mode: of a layer in d dimensions, `2^d r (in + out) prod(n_modes)`, since `2^(d-1)` corners
    of the spectrum are kept. That is less than the layer has if `r < in out / (in + out)`.

    A merged model runs at every resolution at which the model runs.

    Claims foundax's `SpectralConv1d/2d/3d`, and by the same law the layers of GeoFNO and PCNO
    (complex pairs of cosine and sine weights; the constant mode's matrix is real, and so are its
    `r (in + out)` parameters) and the `AFNO2D` of DPOT, where `k` counts blocks of channels.

    **Arguments:**

    - `base`: the layer, its weights real arrays of any floating dtype.
    - `rank`: of every mode, unless `bands` is given.
    - `adapter_dtype`: the dtype of the (real) arrays; by default the weights', float32 at least.
    - `bands`: ranks by frequency, `{4: 8, 12: 2}`: rank 8 for modes whose frequency, the largest
        `|k_j|` over the axes of the transform, is below 4, rank 2 from there to below 12, and no
        update above. foundax's FNOs pad their input to twice its size, so a frequency of the
        transform is half as high in the domain.

    **Raises:** `ValueError` if `bands` are not positive integers or exceed `rank`, or if the modes
    of the layer have no known frequencies (GeoFNO, PCNO, `AFNO2D`).

    Papers: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685; Li
    et al., "Fourier Neural Operator for Parametric Partial Differential Equations",
    arXiv:2010.08895; Zhang et al., "F-Adapter: Frequency-Adaptive Parameter-Efficient Fine-Tuning
    in Scientific Machine Learning", arXiv:2509.23173, for more capacity at low frequencies. The
    update of complex matrices is ours.
    """

    variant = "lora"
    auto = True
    about = cited(
        "2106.09685",
        "2010.08895",
        "2509.23173",
        family="low rank",
        formula="2 r (in + out) per mode",
    )

    @classmethod
    def scale_of(cls, rank: int, alpha: float) -> float:
        return alpha / rank

    @classmethod
    def with_products(cls, layer: Any, factors: Mapping[str, tuple[Array, Array]]) -> LoRAWrapper:
        """The adapter that adds `B A` to each matrix. See `jno_lora_zoo.MatricesLayer`."""
        rank = next(iter(factors.values()))[0].shape[-2]
        state: dict[str, Array] = {}
        for name, (A, B) in factors.items():
            state |= {f"lora_A/{name}": parts_of(A), f"lora_B/{name}": parts_of(B)}
        return cls.from_state(layer, state, rank, float(rank))


class rsLoRASpectral(SpectralLowRank):
    """rsLoRA for spectral weights: `LoRASpectral`, with a scale that is stable in the rank.

    Law: `W_k' = W_k + (alpha / sqrt(r)) B_k A_k` for each mode. `2 r (in + out)` real parameters
    train for each.

    Papers: Kalajdzievski, "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA",
    arXiv:2312.03732; Li et al., "Fourier Neural Operator for Parametric Partial Differential
    Equations", arXiv:2010.08895.
    """

    variant = "rslora"
    about = cited("2312.03732", "2010.08895", family="low rank", formula="2 r (in + out) per mode")

    @classmethod
    def scale_of(cls, rank: int, alpha: float) -> float:
        return alpha / math.sqrt(rank)
