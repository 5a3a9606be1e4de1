"""The laws in NumPy and float64, written from the papers and not from our code.

The eleven of the first version are here, and cross every test. The later ones are in the modules
beside this one, and the conformance kit and the oracles take them as well.
"""

import math
from types import SimpleNamespace
from typing import Any

import equinox as eqx
import numpy as np
from tests.pairs import ALL, methods_on

from jno.lora import Shared

from . import laws_from_data, laws_shared, laws_sparse, laws_structured, laws_turned

# The effective rank for a requested one and an (out, in) matrix.
EFFECTIVE_RANK = {
    **dict.fromkeys(
        ("LoRA", "rsLoRA", "LoRAFA", "DoRA", "PiSSA", "MiLoRA", "LoRAXS", "LoKr"),
        lambda rank, out, inputs: min(rank, out, inputs),
    ),
    "OFT": lambda rank, out, inputs: min(rank, out),
    "VeRA": lambda rank, out, inputs: rank,
    "IA3": lambda rank, out, inputs: rank,
    **laws_structured.EFFECTIVE_RANK,
    **laws_sparse.EFFECTIVE_RANK,
    **laws_turned.EFFECTIVE_RANK,
    **laws_from_data.EFFECTIVE_RANK,
    **laws_shared.EFFECTIVE_RANK,
}

# The number of trained parameters, for the effective rank.
_PARAMETER_COUNT = {
    "LoRA": lambda r, out, inputs: r * (inputs + out),
    "rsLoRA": lambda r, out, inputs: r * (inputs + out),
    "LoRAFA": lambda r, out, inputs: r * out,
    "DoRA": lambda r, out, inputs: r * (inputs + out) + out,
    "PiSSA": lambda r, out, inputs: r * (inputs + out),
    "MiLoRA": lambda r, out, inputs: r * (inputs + out),
    "LoRAXS": lambda r, out, inputs: r * r,
    "VeRA": lambda r, out, inputs: out + r,
    "IA3": lambda r, out, inputs: out,
    "LoKr": lambda r, out, inputs: r * r + math.ceil(out / r) * math.ceil(inputs / r),
    "OFT": lambda r, out, inputs: math.ceil(out / r) * r * r,
    **laws_structured.PARAMETER_COUNT,
    **laws_sparse.PARAMETER_COUNT,
    **laws_turned.PARAMETER_COUNT,
    **laws_from_data.PARAMETER_COUNT,
    **laws_shared.PARAMETER_COUNT,
}


def parameter_count(method: str, rank: int, out: int, inputs: int) -> int:
    """The documented number of trained parameters, for the *requested* rank."""
    return _PARAMETER_COUNT[method](EFFECTIVE_RANK[method](rank, out, inputs), out, inputs)


def fields_of(wrapper: Any) -> SimpleNamespace:
    """The arrays of an adapter in float64, by the names that the papers give them."""
    names = [name for name in wrapper.__dict__ if name not in ("base", "rank", "alpha")]
    return SimpleNamespace(
        **{name: np.asarray(array_of(wrapper, name)).astype(np.float64) for name in names}
    )


def array_of(wrapper: Any, name: str) -> Any:
    """The array of a field, also of one that is shared with other adapters."""
    field = getattr(wrapper, name)
    return field.value if isinstance(field, Shared) else field


def reference(method: str, fields: Any, W: np.ndarray, rank: int, alpha: float) -> np.ndarray:
    """`W'` for the original matrix `W` and the *requested* rank.

    **Arguments:**

    - `fields`: the adapter's arrays. For VeRA it also holds the drawn `A` and `B`. DoRA's may hold
        `norm`, the row norms to take for constant; PiSSA's and MiLoRA's `residual`, what of `W` is
        frozen, where that is not to be computed from `W`.
    """
    r = EFFECTIVE_RANK[method](rank, *W.shape)
    return (_LAWS | _LATER)[method](fields, W, r, alpha)


def adapted_bias(method: str, fields: Any, layer: Any) -> Any:
    """`layer` with the bias that the method gives it, in NumPy. Few methods touch the bias."""
    law = laws_turned.BIAS_LAWS.get(method)
    if law is None or getattr(layer, "bias", None) is None:
        return layer
    bias = np.asarray(layer.bias)
    new = law(fields, bias.reshape(-1)).reshape(bias.shape)
    return eqx.tree_at(lambda layer: layer.bias, layer, new)


def _lora(f, W, r, alpha):
    return W + alpha / r * f.lora_B @ f.lora_A


def _rslora(f, W, r, alpha):
    return W + alpha / math.sqrt(r) * f.lora_B @ f.lora_A


def _dora(f, W, r, alpha):
    V = W + alpha / r * f.lora_B @ f.lora_A
    norm = vars(f).get("norm", np.linalg.norm(V, axis=1))
    return f.magnitude[:, None] * V / norm[:, None]


def triplets(W, chosen):
    """The part of `W` that the chosen singular triplets make up."""
    U, S, Vt = np.linalg.svd(W, full_matrices=False)
    return U[:, chosen] @ np.diag(S[chosen]) @ Vt[chosen]


def _pissa(f, W, r, alpha):
    residual = vars(f).get("residual", W - triplets(W, slice(0, r)))
    return residual + alpha / r * f.lora_B @ f.lora_A


def _milora(f, W, r, alpha):
    smallest = slice(min(W.shape) - r, None)
    residual = vars(f).get("residual", W - triplets(W, smallest))
    return residual + alpha / r * f.lora_B @ f.lora_A


def _loraxs(f, W, r, alpha):
    return W + alpha / r * f.lora_B @ f.R @ f.lora_A


def _vera(f, W, r, alpha):
    return W + alpha / r * np.diag(f.b) @ f.B @ np.diag(f.d) @ f.A


def _ia3(f, W, r, alpha):
    return np.diag(f.scale) @ W


def _lokr(f, W, r, alpha):
    out, inputs = W.shape
    return W + alpha / r * np.kron(f.kron_A, f.kron_B)[:out, :inputs]


def _oft(f, W, r, alpha):
    new = np.empty_like(W)
    for k, Q in enumerate(f.Q_blocks):
        rows = slice(k * r, min((k + 1) * r, len(W)))
        n = rows.stop - rows.start  # the last block may be smaller
        skew = (Q - Q.T)[:n, :n] / 2
        new[rows] = (np.eye(n) - skew) @ np.linalg.inv(np.eye(n) + skew) @ W[rows]
    return new


_LAWS = {
    "LoRA": _lora,
    "rsLoRA": _rslora,
    "LoRAFA": _lora,
    "DoRA": _dora,
    "PiSSA": _pissa,
    "MiLoRA": _milora,
    "LoRAXS": _loraxs,
    "VeRA": _vera,
    "IA3": _ia3,
    "LoKr": _lokr,
    "OFT": _oft,
}

_LATER = {
    **laws_structured.LAWS,
    **laws_sparse.LAWS,
    **laws_turned.LAWS,
    **laws_from_data.LAWS,
    **laws_shared.LAWS,
}

METHODS = tuple(_LAWS)
LATER = tuple(_LATER)
ALL_METHODS = (*METHODS, *LATER)

# rsLoRA is LoRA with another scale, and MiLoRA is PiSSA with other triplets: what a kind of layer
# does with them, it does with LoRA and PiSSA. (`test_conformance.py` checks that this is all.)
SAME_BUT = {"rsLoRA": ("LoRA", "scale_for"), "MiLoRA": ("PiSSA", "triplets")}
# The methods that run the whole kit on each kind of layer. DoRA has a low-rank product, a norm of
# each row and a gain of the outputs, and so uses the most of a kind.
WHOLE_KIT = tuple(m for m in METHODS if m not in SAME_BUT) if ALL else ("DoRA",)


def kind_only(kind: str) -> list[str]:
    """The methods that run the kind's checks alone on this kind of layer."""
    return [method for method in methods_on(kind) if method not in WHOLE_KIT]
