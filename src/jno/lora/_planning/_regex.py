"""Regexes on paths, as they come from the user."""

import re
from typing import Any

from .._errors import SelectionError


def compiled(pattern: Any, what: str) -> re.Pattern[str] | None:
    """`pattern` compiled; `None` stays `None`.

    **Raises:** `SelectionError` that calls it `what`, if it is not a regex.
    """
    if pattern is None or isinstance(pattern, re.Pattern):
        return pattern
    if not isinstance(pattern, str):
        raise SelectionError(f"`{what}` must be a regex (a string), but is {pattern!r}.")
    try:
        return re.compile(pattern)
    except re.error as err:
        raise SelectionError(
            f"`{what}` is not a valid regex: {pattern!r}: {err}. It is searched in slash-joined "
            "paths such as 'encoder/layers/0'; escape special characters with a backslash."
        ) from err
