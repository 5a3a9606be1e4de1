"""Tied-LoRA: all layers with the same shape share the trained factors of LoRA."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from jno.lora import Shared

from .._arrays import Matrix
from .._bibtex import cited
from .vera import BetweenVectors


class TiedLoRA(BetweenVectors):
    """Tied-LoRA: layers of equal shape share both factors, and scale them by their own vectors.

    Law: `W' = W + (alpha / r) diag(b) B diag(d) A`. `A ~ N(0, 1/in)` and `B = 0` are shared by all
    layers whose matrix has the same shape; each layer has its own `b = 1` and `d = 1`. `out + r`
    parameters train in a layer, and `r(in + out)` for each shape. `r = min(rank, in, out)`; a layer
    of lower rank uses the first components.

    The paper also compares frozen factors and vectors. Freeze them by a mask:
    `net.mask("lora_A").freeze()`.

    - `zero`: what starts at 0. With `"b"`, `B ~ N(0, 1)` and `b = 0`, so that a frozen `B` is not
        zero.

    Paper: Renduchintala et al., "Tied-LoRA: Enhancing parameter efficiency of LoRA with Weight
    Tying", arXiv:2311.09578. `b` and `d` are the paper's `v` and `u`. Call
    `jno.lora.resolve(model)` in the loss.

    **Raises:** `ValueError` unless `zero` is `"B"` or `"b"`.
    """

    adapter_fields = ("lora_A", "lora_B", "b", "d")
    variant = "tied-lora"
    about = cited("2311.09578", family="low rank", formula="out + r, and r (in + out) once")
    _rank_limits = ("out", "in")

    lora_A: Shared
    lora_B: Shared

    def start(
        self, W: Matrix, r: int, key: PRNGKeyArray, dtype: DTypeLike, *, zero: str = "B"
    ) -> dict[str, Array | Shared]:
        if zero not in ("B", "b"):
            raise ValueError(f'`zero` must be "B" or "b", but is {zero!r}')
        outputs, inputs = W.shape
        fan_in = self.fan_in(W)
        # A lookup reads a single column of `A`, whose entries are larger.
        shape = f"{outputs}x{inputs}" + ("" if fan_in == inputs else "-of-lookups")
        make_A = functools.partial(normal, dtype=dtype, scale=1 / math.sqrt(fan_in))
        make_B = functools.partial(normal, dtype=dtype, scale=0.0 if zero == "B" else 1.0)
        return {
            "lora_A": Shared(f"tied-A-{shape}", (r, inputs), make_A),
            "lora_B": Shared(f"tied-B-{shape}", (outputs, r), make_B),
            "b": jnp.full(outputs, 1.0 if zero == "B" else 0.0, dtype),
            "d": jnp.ones(r, dtype),
        }

    def projections(self, W: Array) -> tuple[Float[Array, "r in"], Float[Array, "out r"]]:
        A, B = self.lora_A.array[: self.rank], self.lora_B.array[:, : self.rank]
        return A.astype(W.dtype), B.astype(W.dtype)


def normal(key: PRNGKeyArray, shape: tuple[int, ...], *, dtype: DTypeLike, scale: float) -> Array:
    """Normal numbers with mean 0 and this standard deviation."""
    return scale * jax.random.normal(key, shape, dtype)
