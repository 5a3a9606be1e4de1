"""Laws of starts that come from data, in NumPy and float64, and data for them."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from .laws import law, of_lora
from .laws_shared import OPTIONS


def statistics_for(needs: tuple[Any, ...], out: int, inputs: int) -> dict[str, np.ndarray]:
    """Made-up statistics of a layer with a matrix of this shape, in float32."""
    rng = np.random.default_rng(17)
    X = rng.normal(size=(2 * inputs, inputs)) * np.linspace(2, 0.5, inputs) + rng.normal(
        size=inputs
    )
    made = {
        "input_covariance": X.T @ X / len(X),
        "input_mean": X.mean(axis=0),
        "gradient": rng.normal(size=(out, inputs)),
    }
    return {name: made[name].astype(np.float32) for name in needs}


def given_to(cls: Any, layer: Any) -> dict[str, Any]:
    """The keywords of the constructor of `cls`: options for small layers, made-up statistics."""
    if not cls.needs:
        return next(
            (OPTIONS[base.__name__] for base in cls.__mro__ if base.__name__ in OPTIONS), {}
        )
    made = statistics_for(cls.needs, *cls.matrix(layer).shape)
    return {"statistics": {name: jnp.asarray(array) for name, array in made.items()}}


def _wide(name: str, W: Any) -> np.ndarray:
    return statistics_for((name,), *W.shape)[name].astype(np.float64)


def input_directions(W: Any, r: int) -> tuple[np.ndarray, np.ndarray]:
    """EVA: the largest eigenvalues of the centred covariance, and their vectors as rows."""
    mean = _wide("input_mean", W)
    variances, vectors = np.linalg.eigh(_wide("input_covariance", W) - np.outer(mean, mean))
    return variances[::-1][:r], vectors[:, ::-1][:, :r].T


def corda_part(W: Any, r: int, largest: bool = True) -> np.ndarray:
    """CorDA: `U S V^T C^-1`, for the chosen triplets of `W C`."""
    C = _wide("input_covariance", W)
    C = C / np.mean(np.diag(C)) + 0.01 * np.eye(len(C))
    U, S, Vt = np.linalg.svd(W @ C, full_matrices=False)
    chosen = slice(0, r) if largest else slice(len(S) - r, None)
    return U[:, chosen] @ np.diag(S[chosen]) @ Vt[chosen] @ np.linalg.inv(C)


def null_space(W: Any, r: int) -> np.ndarray:
    """LoRA-Null: as columns, the directions that the inputs use least."""
    return np.linalg.svd(_wide("input_covariance", W))[2][-r:].T


def null_part(W: Any, r: int) -> np.ndarray:
    """LoRA-Null: the part of the weight that reads these directions."""
    N = null_space(W, r)
    return W @ N @ N.T


def _signs(one: Any, other: Any) -> Any:
    """The signs by which rows that are equal but for their signs differ."""
    return np.sign(np.sum(one * other, axis=1))[:, None]


def lora_ga_part(f: Any, W: Any, r: int, gamma: float = 16.0) -> np.ndarray:
    """LoRA-GA: `B A` before its scale. Singular vectors have a free sign: it is the adapter's."""
    U, _, Vt = np.linalg.svd(_wide("gradient", W), full_matrices=False)
    right, left = Vt[:r], U.T[r : 2 * r]
    if len(left) < r:
        left = U.T[-r:]
    right = right * _signs(right, f.initial_A)
    left = left * _signs(left, f.initial_B.T)
    return left.T @ right * np.sqrt(len(W)) / gamma


def lora_one_part(W: Any, r: int, gamma: float = 128.0) -> np.ndarray:
    """LoRA-One: `B A` before its scale, the negative gradient's best approximation, normalised."""
    U, S, Vt = np.linalg.svd(-_wide("gradient", W), full_matrices=False)
    return U[:, :r] @ np.diag(S[:r] / S[0]) @ Vt[:r] / gamma


@law("LoRANull", parameters=of_lora)
def _lora_null(f: Any, W: Any, r: int, alpha: float) -> np.ndarray:
    return W - null_part(W, r) + alpha / r * f.lora_B @ f.lora_A


@law("EVA", parameters=of_lora)
def _eva(f: Any, W: Any, r: int, alpha: float) -> np.ndarray:
    return W + alpha / r * f.lora_B @ f.lora_A


@law("CorDA", parameters=of_lora)
def _corda(f: Any, W: Any, r: int, alpha: float) -> np.ndarray:
    return W - corda_part(W, r) + alpha / r * f.lora_B @ f.lora_A


@law("LoRAGA", parameters=of_lora)
def _lora_ga(f: Any, W: Any, r: int, alpha: float) -> np.ndarray:
    return W + alpha / r * (f.lora_B @ f.lora_A - lora_ga_part(f, W, r))


@law("LoRAOne", parameters=of_lora)
def _lora_one(f: Any, W: Any, r: int, alpha: float) -> np.ndarray:
    return W + alpha / r * (f.lora_B @ f.lora_A - lora_one_part(W, r))
