"""The axes of arrays, inferred from the uses of the arrays in a function."""

from ._infer import infer as infer
