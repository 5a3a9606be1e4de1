"""A plugin of somebody else: an EVA, a VB-LoRA and an AdaLoRA, by public names only."""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from jno.lora import LoRAWrapper, Shared, hookimpl

jno_lora_api = 1


class Linear(LoRAWrapper):
    """The common part of the three: `W' = W + s B A` on `eqx.nn.Linear`."""

    base: eqx.nn.Linear
    rank: int = eqx.field(static=True)
    alpha: float = eqx.field(static=True)

    @classmethod
    def applies_to(cls, leaf: Any) -> bool:
        return type(leaf) is eqx.nn.Linear and eqx.is_inexact_array(leaf.weight)

    @classmethod
    def stack_ndim(cls, leaf: Any) -> int:
        return leaf.weight.ndim - 2

    @classmethod
    def matrix(cls, layer: Any) -> Any:
        return layer.weight.astype(_compute_dtype(layer.weight))

    def factors(self) -> tuple[Any, Any]:
        """`A` `(r, in)` and `B` `(out, r)`."""
        raise NotImplementedError

    def low_rank_update(self) -> tuple[Any, Any]:
        A, B = self.factors()
        return A, self.alpha / self.rank * B

    def __call__(self, x: Any) -> Any:
        A, B = self.low_rank_update()
        return self.base(x) + B.astype(x.dtype) @ (A.astype(x.dtype) @ x)

    def merge(self) -> Any:
        A, B = self.low_rank_update()
        W = self.matrix(self.base)
        new = (W + B.astype(W.dtype) @ A.astype(W.dtype)).astype(self.base.weight.dtype)
        return eqx.tree_at(lambda m: m.weight, self.base, new)


class PrincipalInputs(Linear):
    """`A` starts as the directions of the largest inputs."""

    adapter_fields = ("lora_A", "lora_B")
    variant = "principal-inputs"
    needs = ("input_covariance",)

    lora_A: jax.Array
    lora_B: jax.Array

    def __init__(self, base: Any, rank: int, alpha: float, *, key: Any, statistics: Any):
        outputs, inputs = base.weight.shape
        self.base, self.alpha, self.rank = base, alpha, min(rank, inputs, outputs)
        dtype = _compute_dtype(base.weight)
        _, vectors = jnp.linalg.eigh(statistics["input_covariance"].astype(dtype))
        self.lora_A = vectors[:, ::-1][:, : self.rank].T
        self.lora_B = jnp.zeros((outputs, self.rank), dtype)

    def factors(self) -> tuple[Any, Any]:
        return self.lora_A, self.lora_B


def _start_of_bank(key: Any, shape: tuple[int, ...]) -> Any:
    return jax.random.uniform(key, shape, jnp.float32, -0.5, 0.5)


class VectorBank(Linear):
    """Rows of `A` and columns of `B` are mixtures of the vectors of one bank, shared by all layers.

    `B` is the difference to the mixture at the start, so that the start is the identity.
    """

    adapter_fields = ("bank", "weights_A", "weights_B")
    variant = "vector-bank"

    bank: Shared
    weights_A: jax.Array
    weights_B: jax.Array

    def __init__(self, base: Any, rank: int, alpha: float, *, key: Any):
        outputs, inputs = base.weight.shape
        self.base, self.alpha, self.rank = base, alpha, rank
        self.bank = Shared("jno-lora-outside/bank", (8, max(inputs, outputs)), _start_of_bank)
        self.weights_A = jax.random.normal(key, (rank, 8), _compute_dtype(base.weight))
        self.weights_B = jnp.zeros((8, rank), _compute_dtype(base.weight))

    def factors(self) -> tuple[Any, Any]:
        outputs, inputs = self.base.weight.shape
        bank = self.bank.array.astype(self.weights_A.dtype)
        return self.weights_A @ bank[:, :inputs], bank[:, :outputs].T @ self.weights_B


class MovingRank(Linear):
    """Directions with a gate, which a controller switches off, kept orthonormal by a penalty."""

    adapter_fields = ("lora_A", "lora_B", "gate")
    variant = "moving-rank"
    rank_gate = "gate"
    rank_axes: ClassVar = {"lora_A": 0, "lora_B": 1}

    lora_A: jax.Array
    lora_B: jax.Array
    gate: jax.Array

    def __init__(self, base: Any, rank: int, alpha: float, *, key: Any):
        outputs, inputs = base.weight.shape
        self.base, self.alpha, self.rank = base, alpha, min(rank, inputs, outputs)
        dtype, (for_A, for_B) = _compute_dtype(base.weight), jax.random.split(key)
        self.lora_A = jax.random.normal(for_A, (self.rank, inputs), dtype) / inputs**0.5
        self.lora_B = jax.random.normal(for_B, (outputs, self.rank), dtype) / outputs**0.5
        self.gate = jnp.zeros(self.rank, dtype)

    def factors(self) -> tuple[Any, Any]:
        return self.lora_A, self.lora_B * self.gate[None, :]

    def penalty(self) -> Any:
        identity = jnp.eye(self.rank, dtype=self.gate.dtype)
        grams = (self.lora_A @ self.lora_A.T, self.lora_B.T @ self.lora_B)
        return sum(jnp.sum((gram - identity) ** 2) for gram in grams)


def _compute_dtype(weight: Any) -> Any:
    return jnp.float64 if weight.dtype == jnp.float64 else jnp.float32


@hookimpl
def jno_lora_wrappers() -> list[type[LoRAWrapper]]:
    return [PrincipalInputs, VectorBank, MovingRank]
