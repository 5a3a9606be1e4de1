"""The axes of arrays, inferred from the uses of the arrays in a function."""

# ruff: noqa: F401
from ._infer import infer
