"""The settings of `adapter_config.json`, and the modules that they name."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from jno.lora import PeftFormatError
from jno.lora.extending import bullets, warn

from ._names import EMBEDDING, HEAD, is_embedding, may_be_tied
from ._refusals import KNOWN, refused_settings, refused_type
from ._type import Setting
from ._types import TYPES


@dataclasses.dataclass(frozen=True)
class Config:
    """The configuration of one PEFT adapter, of a type that can be converted."""

    values: Mapping[str, Any]

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> "Config":
        """Check a configuration. Unknown settings only warn, as in PEFT."""
        peft_type = values.get("peft_type")
        if peft_type not in TYPES:
            raise PeftFormatError(refused_type(peft_type))
        problems = [*refused_settings(values), *_malformed(values)]
        if problems:
            raise PeftFormatError(
                f"This {peft_type} adapter of PEFT cannot be loaded:\n{bullets(problems)}"
            )
        unknown = sorted(key for key in values.keys() - KNOWN if values[key])
        if unknown:
            warn(
                f"adapter_config.json sets {', '.join(map(repr, unknown))}, which is not known "
                "here and is left out: it may come from a newer PEFT."
            )
        return cls(values)

    @property
    def type(self) -> str:
        """The `peft_type`."""
        return self.values["peft_type"]

    @property
    def variant(self) -> str:
        """The variant here of an adapter of the type `"LORA"`."""
        if self.values.get("use_dora"):
            return "dora"
        return "rslora" if self.values.get("use_rslora") else "lora"

    def rank(self, module: str) -> int:
        """The rank for the module of that name."""
        return self._for(module, TYPES[self.type].rank)

    def alpha(self, module: str) -> float:
        """The numerator of the scale for the module of that name."""
        return self._for(module, TYPES[self.type].alpha)

    def is_target(self, module: str) -> bool:
        """Whether PEFT would put an adapter on the module of that name."""
        excluded, targets = self.values.get("exclude_modules"), self.values.get("target_modules")
        if excluded and _names(excluded, module):
            return False
        saved = self.values.get("modules_to_save") or ()
        if any(re.match(rf"(^|.*\.){name}($|\..*)", module) for name in saved):
            return False
        if targets is None or targets == "all-linear":
            return True
        return _names(targets, module) and (
            isinstance(targets, str) or module in targets or self._is_layer_to_transform(module)
        )

    @property
    def ties(self) -> bool:
        """Whether PEFT lets a tied head see what becomes of its embedding."""
        return self.type in ("LORA", "ADALORA") and bool(self.values.get("ensure_weight_tying"))

    def ties_adapter_of(self, module: str) -> bool:
        """Whether PEFT lets a tied head see the adapter of the embedding of that name."""
        if not self.ties or self.type != "LORA" or not is_embedding(module):
            return False
        if any(map(may_be_tied, self.values.get("modules_to_save") or ())):
            return False
        targets = self.values.get("target_modules")
        if isinstance(targets, str):
            return any(re.fullmatch(targets, name) for name in (EMBEDDING, HEAD))
        return any(map(may_be_tied, targets or ()))

    def saves(self, module: str) -> bool:
        """Whether the module of that name is one of `modules_to_save`."""
        return any(module.endswith(name) for name in self.values.get("modules_to_save") or ())

    def rows(self, module: str) -> list[int] | None:
        """Which rows of the embedding of that name the file replaces."""
        rows = self.values.get("token_indices") or self.values.get("trainable_token_indices")
        if isinstance(rows, dict):
            return next((own for name, own in rows.items() if module.endswith(name)), None)
        return rows

    def _for(self, module: str, setting: Setting | None) -> Any:
        if setting is None:
            return 1
        for key, value in (self.values.get(setting.pattern) or {}).items():
            if re.match(rf"(.*\.)?({key})$", module):
                return value
        value = self.values.get(setting.name)
        return setting.default if value is None else value

    def _is_layer_to_transform(self, module: str) -> bool:
        wanted = self.values.get("layers_to_transform")
        if wanted is None or wanted == []:
            return True
        wanted = [wanted] if isinstance(wanted, int) else wanted
        patterns = self.values.get("layers_pattern") or r".*?\.[^.]*"
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            found = re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", module)
            if found:  # the last group: the pattern may have some of its own
                return int(found[found.re.groups]) in wanted
        return False


def _names(names: str | list[str], module: str) -> bool:
    """Whether `module` is named: by a regex as a whole, by a list also by the end of its name."""
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names)


def _malformed(values: Mapping[str, Any]) -> list[str]:
    """A line for each setting that is not of the type that PEFT writes."""
    if values["peft_type"] == "ADALORA":
        # It keeps there which components are left; the tensors hold those alone.
        values = {**values, "rank_pattern": None}
    kind, checks = TYPES[values["peft_type"]], dict(_CHECKS)
    for setting, check in ((kind.rank, _RANK), (kind.alpha, _NUMBER)):
        if setting is not None:
            checks[setting.name] = check
    found = [
        f"{name} is {value!r}, not {checks[name][0]}"
        for name, value in values.items()
        if value is not None and name in checks and not checks[name][1](value)
    ]
    return found or _bad_regexes(values)


def _bad_regexes(values: Mapping[str, Any]) -> list[str]:
    patterns: list[tuple[str, str]] = []
    for name in ("target_modules", "exclude_modules", "feedforward_modules"):
        if isinstance(values.get(name), str):
            patterns.append((values[name], "{}"))
    for name in ("layers_pattern", "modules_to_save", "rank_pattern", "alpha_pattern"):
        parts = values.get(name) or ()
        patterns += [(part, "({})") for part in ([parts] if isinstance(parts, str) else parts)]
    found: list[str] = []
    for pattern, whole in patterns:
        try:
            re.compile(pattern)
            # PEFT uses it inside of another one, where flags such as (?i) are not allowed.
            re.compile(whole.format(pattern))
        except (re.error, OverflowError, RecursionError) as err:
            found.append(f"{pattern!r} is not a valid regular expression: {err}")
    return found


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
# By setting: the words for it, and the check.
_CHECKS: dict[str, tuple[str, Any]] = {
    **dict.fromkeys(("target_modules", "exclude_modules"), _NAMES),
    **dict.fromkeys(("feedforward_modules", "layers_pattern"), _NAMES),
    "modules_to_save": ("a list of names", _is_names),
    "layers_to_transform": ("a number or a list of them", _is_indices),
    "alpha_pattern": ("a table of numbers", _is_table(_is_number)),
    **dict.fromkeys(
        ("rank_pattern", "n_frequency_pattern"), ("a table of ranks", _is_table(_is_rank))
    ),
}
