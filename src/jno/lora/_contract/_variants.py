"""Variants: how they are compared, and the words that adapters may not use."""

import re

# Words with a special meaning in `wrapper=`, `target=` or `compare`, normalised.
RESERVED_WORDS = ("auto", "all", "none", "alllinear")


def normalise_word(name: str) -> str:
    """A variant for comparison, without case, dashes and underscores: "lorafa" for "LoRA-FA"."""
    return re.sub(r"[-_ ]", "", name).lower()
