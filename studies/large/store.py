"""Pretrain the two models: `python -m studies.large.store`. It goes on after an interruption."""

import equinox as eqx
import jax.numpy as jnp

from .._families import FULL, pretrained, relative_errors, simulate, store
from ._models import FNO, TRANSFORMER


def main() -> None:
    """Write the files that the cache lacks, and print the errors in the source setting."""
    for family in (FNO, TRANSFORMER):
        file = store(family, FULL)
        fields, solutions = simulate(family, 1000, 64, family.source)
        predicted = eqx.filter_jit(family.apply)(pretrained(family, FULL), fields)
        error = jnp.mean(relative_errors(predicted, solutions))
        print(f"{file} has an error of {error:.3f} in the source setting.")


if __name__ == "__main__":
    main()
