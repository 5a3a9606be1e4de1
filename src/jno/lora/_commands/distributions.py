"""Distributions whose metadata keep them from being plugins, for `jno-lora doctor` and `check`."""

import dataclasses
import difflib
import operator
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from .._paths import nearest
from .._registry import ENTRY_POINT_GROUP, FIRST_PARTY, PluginRecord, names_in, normalise
from .._version import __version__

# Groups that authors write for ours, without dots, dashes and underscores.
_NEAR_GROUPS = [f"jnolora{end}" for end in ("", "plugins", "adapters", "wrappers")]

_CLAUSE = re.compile(r"\s*(~=|==|!=|<=|>=|<|>)\s*(\d+(?:\.\d+)*)(\.\*)?\s*")
_COMPARISONS: Mapping[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}


@dataclasses.dataclass(frozen=True)
class Distribution:
    """An installed distribution.

    - `groups`: the groups of its entry points.
    - `needs`: the bounds of its requirements, such as `">=0.2,<0.3"`, by normalised name.
        Requirements of an extra, or of another version of Python, are left out.
    """

    name: str
    version: str
    groups: frozenset[str]
    needs: Mapping[str, str]

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


def installed_distributions() -> dict[str, Distribution]:
    """The installed distributions by normalised name. The first on `sys.path` counts."""
    import importlib_metadata

    distributions: dict[str, Distribution] = {}
    for installed in importlib_metadata.distributions():
        try:
            needs = dict(filter(None, map(_need, installed.requires or ())))
            groups = frozenset(entry.group for entry in installed.entry_points)
            distribution = Distribution(installed.name, installed.version, groups, needs)
            distributions.setdefault(normalise(installed.name), distribution)
        except Exception:  # a half-removed installation
            continue
    return distributions


def _need(requirement: str) -> tuple[str, str] | None:
    """The name and the bounds of a requirement; `None` for a requirement that is left out."""
    needed, _, condition = requirement.partition(";")
    match = re.fullmatch(r"([\w.-]+)\s*(?:\[[^\]]*\])?\s*\(?([^;@()]*)\)?\s*", needed)
    pythons = re.findall(r"\bpython_version\s*([~=!<>]+)\s*['\"]([\d.]+)['\"]", condition)
    version = "{}.{}".format(*sys.version_info)
    is_here = all(is_within(version, f"{relation}{bound}") for relation, bound in pythons)
    if match is None or not is_here or re.search(r"\bextra\b", condition):
        return None
    return normalise(match[1]), match[2].strip()


def troubles(distributions: Mapping[str, Distribution], name: str) -> Iterator[str]:
    """A text for each problem in the metadata of one distribution, with what to do."""
    distribution = distributions.get(name)
    if distribution is None:
        return
    near_groups = sorted(filter(_is_near, distribution.groups))
    for group in near_groups:
        yield (
            f"{distribution} has entry points in the group {group!r}, but plugins are found by the "
            f'group "{ENTRY_POINT_GROUP}". In its pyproject.toml, write '
            f'[project.entry-points."{ENTRY_POINT_GROUP}"], and install it again.'
        )
    is_plugin = bool(near_groups) or ENTRY_POINT_GROUP in distribution.groups
    if name.startswith("jno-lora-") and name not in FIRST_PARTY and not is_plugin:
        yield (
            f"{distribution} is named like a plugin, but has no entry point in the group "
            f'"{ENTRY_POINT_GROUP}", so nothing in it is found by name. In its pyproject.toml, add '
            f'[project.entry-points."{ENTRY_POINT_GROUP}"], and install it again.'
        )
    versions = {key: installed.version for key, installed in distributions.items()}
    versions["jno-lora"] = __version__  # also where it is imported without being installed
    for need in sorted({"jno-lora", *FIRST_PARTY} & distribution.needs.keys() & versions.keys()):
        bounds = distribution.needs[need]
        if not is_within(versions[need], bounds):
            yield (
                f"{distribution} needs {need}{bounds}, but {need} {versions[need]} is installed. "
                f"Install versions that fit each other: pip install -U {name} {need}"
            )


def notes(distributions: Mapping[str, Distribution]) -> Iterator[str]:
    """A text for each distribution that may be a plugin without an entry point, or a program."""
    for name, distribution in distributions.items():
        is_named = f"{name}-".startswith("jno-lora-")
        is_plugin = any(g == ENTRY_POINT_GROUP or _is_near(g) for g in distribution.groups)
        if "jno-lora" in distribution.needs and not is_named and not is_plugin:
            yield (
                f"{distribution} uses jno-lora, and has no entry point in the group "
                f'"{ENTRY_POINT_GROUP}". A program needs none, but a plugin needs one.'
            )


def unmatched_names(records: tuple[PluginRecord, ...]) -> Iterator[str]:
    """A text for each name in `JNO_LORA_BLOCK` and `JNO_LORA_PLUGINS` that means no plugin."""
    distributions = {record.distribution for record in records}
    entries = {normalise(record.name) for record in records}
    meanings = {
        "JNO_LORA_BLOCK": distributions | entries,
        "JNO_LORA_PLUGINS": {*distributions, *FIRST_PARTY},
    }
    for variable, plugins in meanings.items():
        for name in sorted(names_in(variable) - plugins):
            near = ", ".join(nearest(name, sorted(plugins))) or "none"
            yield (
                f"{variable} names {name!r}, but no installed plugin has this name. The nearest "
                f"names are: {near}."
            )


def is_within(version: str, bounds: str) -> bool:
    """Whether a version fits `bounds` such as `">=0.2,<0.3"`.

    Only the numbers of a release are compared: `1.0rc1` counts as `1.0`. A bound that does not
    parse fits every version.
    """
    clauses = (_CLAUSE.fullmatch(clause) for clause in bounds.split(","))
    return all(_fits(version, *match.groups()) for match in clauses if match is not None)


def _fits(version: str, relation: str, bound: str, wildcard: str | None) -> bool:
    release, numbers, length = _numbers(version), _numbers(bound), len(bound.split("."))
    if relation == "~=":  # "~= 1.2" is ">= 1.2, == 1.*"
        return release >= numbers and release[: length - 1] == numbers[: length - 1]
    if wildcard is not None:
        release, numbers = release[:length], numbers[:length]
    return _COMPARISONS[relation](release, numbers)


def _numbers(version: str) -> list[int]:
    """The numbers of a release, with zeros after them: `1.2rc1` gives 1, 2, 0, 0, ..."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    numbers = [int(number) for number in match[0].split(".")] if match else []
    return [*numbers, *(0 for _ in range(8 - len(numbers)))]


def _is_near(group: str) -> bool:
    """Whether a group of entry points was probably meant to be ours."""
    squashed = re.sub(r"[^a-z0-9]", "", group.lower())
    near = difflib.get_close_matches(squashed, _NEAR_GROUPS, n=1, cutoff=0.9)
    return group != ENTRY_POINT_GROUP and bool(near)
