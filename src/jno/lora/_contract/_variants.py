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
    if variant is None:
        return None
    if not (isinstance(variant, str) and variant):
        return "must be a text that is not empty, or None"
    if ":" in variant:
        return 'must hold no ":", which stands between a distribution and a name in `wrapper=`'
    if not squash(variant):
        return "must hold more than dashes, underscores and spaces, which do not count"
    if squash(variant) in RESERVED_WORDS:
        return "must be another word: `auto`, `all`, `none` and `all-linear` are reserved"
    return None
