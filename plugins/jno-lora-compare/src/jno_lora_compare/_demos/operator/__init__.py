"""A Fourier neural operator that moves to another viscosity."""

from ._run import run_operator

__all__ = ["run_operator"]
