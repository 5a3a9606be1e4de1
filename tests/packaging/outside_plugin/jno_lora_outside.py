"""A plugin of somebody else, by public names only: a start from data, and a shared array."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from jno.lora import LoRAWrapper, MatrixAdapter, Shared, hookimpl

jno_lora_api = 1


class PrincipalInputs(MatrixAdapter):
    """`W' = W + s B A`: `A` starts as the directions of the largest inputs.

    The columns of `B` are mixtures of the vectors of one bank, which all layers share.
    """

    adapter_fields = ("lora_A", "bank", "weights")
    variant = "principal-inputs"
    needs = ("input_covariance",)

    base: eqx.nn.Linear
    lora_A: jax.Array
    bank: Shared
    weights: jax.Array
    rank: int = eqx.field(static=True)
    alpha: float = eqx.field(static=True)

    @classmethod
    def applies_to(cls, leaf: Any) -> bool:
        return type(leaf) is eqx.nn.Linear and eqx.is_inexact_array(leaf.weight)

    @classmethod
    def matrix(cls, layer: Any) -> Any:
        return layer.weight

    def __init__(self, base: Any, rank: int, alpha: float, *, key: Any, statistics: Any):
        outputs, inputs = base.weight.shape
        self.base, self.alpha, self.rank = base, alpha, min(rank, inputs, outputs)
        _, vectors = jnp.linalg.eigh(statistics["input_covariance"])
        self.lora_A = vectors[:, ::-1][:, : self.rank].T
        self.bank = Shared("jno-lora-outside/bank", (8, outputs), jax.random.normal)
        self.weights = jnp.zeros((8, self.rank))

    def low_rank_update(self) -> tuple[Any, Any]:
        bank = self.bank.array[:, : self.base.out_features]
        return self.lora_A, self.alpha / self.rank * bank.T @ self.weights

    def __call__(self, x: Any) -> Any:
        A, B = self.low_rank_update()
        return self.base(x) + B @ (A @ x)

    def merge(self) -> Any:
        A, B = self.low_rank_update()
        return eqx.tree_at(lambda m: m.weight, self.base, self.base.weight + B @ A)


@hookimpl
def jno_lora_wrappers() -> list[type[LoRAWrapper]]:
    return [PrincipalInputs]
