"""Variants: how they are compared, and the words that no adapter may take."""

import re

# Words with a meaning of their own in `wrapper=`, `target=` or `compare`, as `squash` gives them.
RESERVED_WORDS = ("auto", "all", "none", "alllinear")


def squash(name: str) -> str:
    """A variant as it is compared, without case, dashes and underscores: "LoRA-FA" is "lorafa"."""
    return re.sub(r"[-_ ]", "", name).lower()
