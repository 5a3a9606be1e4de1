"""The laws in NumPy and float64, written from the papers and not from our code.

A law is registered with `law`, here and in the modules beside this one, with the effective rank and
the number of parameters that its documentation promises.
"""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from jno.lora import Shared


class Law(NamedTuple):
    """What a method promises.

    - `law(f, W, r, alpha)`: `W'`, for the adapter's arrays `f` and the *effective* rank `r`.
    - `parameters(r, out, in)`: the number of trained parameters.
    - `rank(rank, out, in)`: the effective rank for a requested rank.
    - `bias(f, b)`: the adapted bias.
    """

    law: Callable[[Any, np.ndarray, int, float], np.ndarray]
    parameters: Callable[[int, int, int], int]
    rank: Callable[[int, int, int], int]
    bias: Callable[[Any, np.ndarray], np.ndarray]


LAWS: dict[str, Law] = {}


def law(*methods, parameters, rank=min, bias=lambda f, b: b):
    """Registers the decorated function as the law of these methods; see `Law`."""

    def register(function):
        LAWS.update(dict.fromkeys(methods, Law(function, parameters, rank, bias)))
        return function

    return register


def as_asked(rank, out, inputs):
    """The effective rank of a method that does not clamp it."""
    return rank


def of_lora(r, out, inputs):
    """The parameters of two factors."""
    return r * (inputs + out)


def parameter_count(method: str, rank: int, out: int, inputs: int) -> int:
    """The documented number of trained parameters, for the *requested* rank."""
    return LAWS[method].parameters(effective_rank(method, rank, out, inputs), out, inputs)


def effective_rank(method: str, rank: int, out: int, inputs: int) -> int:
    """The documented rank that a matrix of this size allows."""
    return LAWS[method].rank(rank, out, inputs)


def fields_of(wrapper: Any) -> SimpleNamespace:
    """The arrays of an adapter in float64, by the names that the papers give them.

    With the random matrices that VeRA and RandLoRA draw from their seed.
    """
    names = [name for name in wrapper.__dict__ if name not in ("base", "rank", "alpha")]
    fields = {name: _wide(array_of(wrapper, name)) for name in names}
    if hasattr(wrapper, "seed") and hasattr(wrapper, "projections"):
        shape = wrapper.matrix(wrapper.base).shape
        fields["A"], fields["B"] = map(_wide, wrapper.projections(jnp.zeros(shape)))
    return SimpleNamespace(**fields)


def _wide(array: Any) -> np.ndarray:
    return np.asarray(array).astype(np.float64)


def array_of(wrapper: Any, name: str) -> Any:
    """The array of a field, also of one that is shared with other adapters."""
    field = getattr(wrapper, name)
    return field.value if isinstance(field, Shared) else field


def reference(method: str, fields: Any, W: np.ndarray, rank: int, alpha: float) -> np.ndarray:
    """`W'` for the original matrix `W` and the *requested* rank.

    **Arguments:**

    - `fields`: the adapter's arrays. DoRA's may hold `norm`, the row norms to take for constant;
        PiSSA's and MiLoRA's `residual`, what of `W` is frozen, where that is not to be computed
        from `W`.
    """
    return LAWS[method].law(fields, W, effective_rank(method, rank, *W.shape), alpha)


def adapted_bias(method: str, fields: Any, layer: Any) -> Any:
    """`layer` with the bias that the method gives it, in NumPy. Few methods touch the bias."""
    if isinstance(layer, eqx.nn.WeightNorm | eqx.nn.SpectralNorm):
        return eqx.tree_at(lambda m: m.layer, layer, adapted_bias(method, fields, layer.layer))
    if getattr(layer, "bias", None) is None:
        return layer
    bias = np.asarray(layer.bias)
    new = LAWS[method].bias(fields, bias.reshape(-1)).reshape(bias.shape)
    return eqx.tree_at(lambda layer: layer.bias, layer, new)


@law("LoRA", parameters=of_lora)
@law("LoRAFA", parameters=lambda r, out, inputs: r * out)
def _lora(f, W, r, alpha):
    return W + alpha / r * f.lora_B @ f.lora_A


@law("rsLoRA", parameters=of_lora)
def _rslora(f, W, r, alpha):
    return W + alpha / math.sqrt(r) * f.lora_B @ f.lora_A


@law("DoRA", parameters=lambda r, out, inputs: r * (inputs + out) + out)
def _dora(f, W, r, alpha):
    V = W + alpha / r * f.lora_B @ f.lora_A
    norm = vars(f).get("norm", np.linalg.norm(V, axis=1))
    return f.magnitude[:, None] * V / norm[:, None]


def triplets(W, chosen):
    """The part of `W` that the chosen singular triplets make up."""
    U, S, Vt = np.linalg.svd(W, full_matrices=False)
    return U[:, chosen] @ np.diag(S[chosen]) @ Vt[chosen]


@law("PiSSA", parameters=of_lora)
def _pissa(f, W, r, alpha):
    residual = vars(f).get("residual", W - triplets(W, slice(0, r)))
    return residual + alpha / r * f.lora_B @ f.lora_A


@law("LoRAXS", parameters=lambda r, out, inputs: r * r)
def _loraxs(f, W, r, alpha):
    return W + alpha / r * f.lora_B @ f.R @ f.lora_A


@law("VeRA", parameters=lambda r, out, inputs: out + r, rank=as_asked)
def _vera(f, W, r, alpha):
    return W + alpha / r * np.diag(f.b) @ f.B @ np.diag(f.d) @ f.A


@law("MiLoRA", parameters=of_lora)
def _milora(f, W, r, alpha):
    smallest = slice(min(W.shape) - r, None)
    residual = vars(f).get("residual", W - triplets(W, smallest))
    return residual + alpha / r * f.lora_B @ f.lora_A


@law("IA3", parameters=lambda r, out, inputs: out, rank=as_asked)
@law(
    "IA3Out",
    parameters=lambda r, out, inputs: out,
    rank=as_asked,
    bias=lambda f, b: f.scale * b,
)
def _ia3(f, W, r, alpha):
    return np.diag(f.scale) @ W


@law(
    "LoKr",
    parameters=lambda r, out, inputs: r * r + math.ceil(out / r) * math.ceil(inputs / r),
)
def _lokr(f, W, r, alpha):
    out, inputs = W.shape
    return W + alpha / r * np.kron(f.kron_A, f.kron_B)[:out, :inputs]


@law(
    "OFT",
    parameters=lambda r, out, inputs: math.ceil(out / r) * r * r,
    rank=lambda rank, out, inputs: min(rank, out),
)
def _oft(f, W, r, alpha):
    new = np.empty_like(W)
    for k, Q in enumerate(f.Q_blocks):
        rows = slice(k * r, min((k + 1) * r, len(W)))
        n = rows.stop - rows.start  # the last block may be smaller
        skew = (Q - Q.T)[:n, :n] / 2
        new[rows] = (np.eye(n) - skew) @ np.linalg.inv(np.eye(n) + skew) @ W[rows]
    return new
