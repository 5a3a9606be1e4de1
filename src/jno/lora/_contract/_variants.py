"""Variants: how they are compared, and the words that no adapter may take."""

import re
from typing import Any

# Words with a meaning of their own in `wrapper=`, `target=` or `compare`, as `squash` gives them.
RESERVED_WORDS = ("auto", "all", "none", "alllinear")


def squash(name: str) -> str:
    """A variant as it is compared, without case, dashes and underscores: "LoRA-FA" is "lorafa"."""
    return re.sub(r"[-_ ]", "", name).lower()


def variant_problem(variant: Any) -> str | None:
    """Why `variant` cannot be a variant, as the end of a sentence; `None` if it can."""
    is_word = isinstance(variant, str) and squash(variant) not in ("", *RESERVED_WORDS)
    if variant is None or (is_word and ":" not in variant):
        return None
    return 'must be a word without ":", but not `auto`, `all`, `none` or `all-linear`; or None'
