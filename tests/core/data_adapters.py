"""Adapters that start from data or share an array, and those that break a promise about it."""

import jax.numpy as jnp

from jno.lora import LowRankForm, Shared

from .good_adapter import Factored, Good, float_of
from .tied import normal


class Informed(Good):
    """A correct adapter: `A` starts in the directions of the largest inputs."""

    needs = ("input_covariance",)

    @classmethod
    def matrix(cls, layer):
        return float_of(layer.weight)

    def __init__(self, base, rank, alpha, *, key, statistics):
        rank = min(rank, *base.weight.shape)
        super().__init__(base, rank, alpha, key=key)
        _, vectors = jnp.linalg.eigh(statistics["input_covariance"].astype(self.lora_A.dtype))
        self.lora_A = self.scaled(vectors[:, -rank:].T, statistics["input_covariance"])

    def scaled(self, A, covariance):
        return A


class DividesByTheVariance(Informed):
    """Divides by the variance, which is zero if nothing was seen."""

    def scaled(self, A, covariance):
        return A / jnp.trace(covariance).astype(A.dtype)


class SeesOtherInputs(Informed):
    """Leaves one input out."""

    @classmethod
    def inputs_of(cls, layer, *args, **kwargs):
        return super().inputs_of(layer, *args)[:, 1:]


class Tied(Factored):
    """A correct adapter, whose `A` all layers share."""

    lora_A: Shared

    def __init__(self, base, rank, alpha, *, key):
        super().__init__(base, rank, alpha, key=key)
        self.lora_A = Shared("tied-A", (rank, base.weight.shape[1]), normal)

    def low_rank_form(self):
        dtype = self.lora_B.dtype
        scale = self.alpha / self.rank
        A = self.lora_A.array[: self.rank, : self.base.weight.shape[1]]
        return LowRankForm(A.astype(dtype), scale * self.lora_B)


class ReadsTheValue(Tied):
    """Reads what only the adapter that keeps the array has."""

    def low_rank_form(self):
        A, B = self.lora_A.value, super().low_rank_form().B
        A = jnp.zeros(self.lora_A.shape, B.dtype) if A is None else A.astype(B.dtype)
        return LowRankForm(A, B)
