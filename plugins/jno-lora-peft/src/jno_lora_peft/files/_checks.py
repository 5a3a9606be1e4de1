"""Whether settings have the types that PEFT writes."""

import math
import re
from collections.abc import Mapping
from typing import Any

from ..types import TYPES


def malformed(settings: Mapping[str, Any]) -> list[str]:
    """A line for each setting that is not of the type that PEFT writes."""
    kind, checks = TYPES[settings["peft_type"]], dict(_CHECKS)
    if kind.name == "ADALORA":
        # Its rank pattern says which components are left, which the tensors say as well.
        settings = {**settings, "rank_pattern": None}
    for setting, check in ((kind.rank, _RANK), (kind.alpha, _NUMBER)):
        if setting is not None:
            checks[setting.name] = check
    lines = [
        f"{name} is {settings[name]!r}, not {words}"
        for name, (words, is_valid) in checks.items()
        if settings.get(name) is not None and not is_valid(settings[name])
    ]
    return lines or _bad_regexes(settings)


def _bad_regexes(settings: Mapping[str, Any]) -> list[str]:
    patterns: list[tuple[str, str]] = []
    for name in ("target_modules", "exclude_modules", "feedforward_modules"):
        if isinstance(settings.get(name), str):
            patterns.append((settings[name], "{}"))
    for name in ("layers_pattern", "modules_to_save", "rank_pattern", "alpha_pattern"):
        values = settings.get(name) or ()
        patterns += [(value, "({})") for value in ([values] if isinstance(values, str) else values)]
    lines: list[str] = []
    for pattern, whole in patterns:
        try:
            re.compile(pattern)
            # PEFT uses it inside of another pattern, where flags such as (?i) are not allowed.
            re.compile(whole.format(pattern))
        except (re.error, OverflowError, RecursionError) as err:
            lines.append(f"{pattern!r} is not a valid regular expression: {err}")
    return lines


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_rank(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_table(check: Any) -> Any:
    return lambda value: isinstance(value, dict) and all(map(check, value.values()))


def _is_indices(value: Any) -> bool:
    values = value if isinstance(value, list) else [value]
    return all(type(index) is int for index in values)


_NAMES = ("a list of names or a regular expression", lambda v: isinstance(v, str) or _is_names(v))
_RANK = ("a whole number above 0", _is_rank)
_NUMBER = ("a number", _is_number)
_RANKS = ("a table of ranks", _is_table(_is_rank))
# By setting: the words for it, and the check.
_CHECKS: dict[str, tuple[str, Any]] = {
    "target_modules": _NAMES,
    "exclude_modules": _NAMES,
    "feedforward_modules": _NAMES,
    "layers_pattern": _NAMES,
    "modules_to_save": ("a list of names", _is_names),
    "layers_to_transform": ("a number or a list of them", _is_indices),
    "alpha_pattern": ("a table of numbers", _is_table(_is_number)),
    "rank_pattern": _RANKS,
    "n_frequency_pattern": _RANKS,
}
