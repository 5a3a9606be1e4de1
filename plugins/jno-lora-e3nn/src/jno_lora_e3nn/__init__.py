"""Adapters for the equivariant layers of e3nn-jax, which keep the equivariance."""

__all__ = []
