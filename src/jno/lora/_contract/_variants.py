"""Variants: how they are compared, and the words that adapters may not use."""

import re

# Words with a special meaning in `wrapper=`, `target=` or `compare`, as `squash` returns them.
RESERVED_WORDS = ("auto", "all", "none", "alllinear")


def squash(name: str) -> str:
    """A variant for comparison, without case, dashes and underscores: "lorafa" for "LoRA-FA"."""
    return re.sub(r"[-_ ]", "", name).lower()
