"""Distributions whose metadata keep them from being plugins, for `jno-lora doctor`."""

import dataclasses
import difflib
import re
from collections.abc import Iterator, Mapping

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet

from .._paths import nearest
from .._registry import ENTRY_POINT_GROUP, PluginRecord, first_party, names_in, normalise
from .._version import __version__

# Groups that authors write for ours, without dots, dashes and underscores.
_NEAR_GROUPS = [f"jnolora{end}" for end in ("", "plugins", "adapters", "wrappers")]


@dataclasses.dataclass(frozen=True)
class Distribution:
    """An installed distribution.

    - `groups`: the groups of its entry points.
    - `needs`: the bounds of its requirements by normalised name. Requirements of an extra, or of
        another version of Python, are left out.
    """

    name: str
    version: str
    groups: frozenset[str]
    needs: Mapping[str, SpecifierSet]

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


def installed_distributions() -> dict[str, Distribution]:
    """The installed distributions by normalised name. The first on `sys.path` counts."""
    import importlib_metadata

    distributions: dict[str, Distribution] = {}
    for installed in importlib_metadata.distributions():
        if not installed.metadata["Name"]:  # a half-removed installation
            continue
        needs = map(_requirement, installed.requires or ())
        needed = {normalise(need.name): need.specifier for need in needs if need is not None}
        groups = frozenset(entry.group for entry in installed.entry_points)
        distribution = Distribution(installed.name, installed.version, groups, needed)
        distributions.setdefault(normalise(installed.name), distribution)
    return distributions


def _requirement(text: str) -> Requirement | None:
    """The requirement, unless it is for an extra, for another Python, or does not parse."""
    try:
        requirement = Requirement(text)
    except InvalidRequirement:  # metadata from before PEP 508
        return None
    marker = requirement.marker
    return requirement if marker is None or marker.evaluate({"extra": ""}) else None


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
    if name.startswith("jno-lora-") and name not in first_party() and not is_plugin:
        yield (
            f"{distribution} is named like a plugin, but has no entry point in the group "
            f'"{ENTRY_POINT_GROUP}", so nothing in it is found by name. In its pyproject.toml, add '
            f'[project.entry-points."{ENTRY_POINT_GROUP}"], and install it again.'
        )
    versions = {key: installed.version for key, installed in distributions.items()}
    versions["jno-lora"] = __version__  # also where it is imported without being installed
    for need in sorted({"jno-lora", *first_party()} & distribution.needs.keys() & versions.keys()):
        bounds = distribution.needs[need]
        if not bounds.contains(versions[need], prereleases=True):
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
        "JNO_LORA_PLUGINS": {*distributions, *first_party()},
    }
    for variable, plugins in meanings.items():
        for name in sorted(names_in(variable) - plugins):
            near = ", ".join(nearest(name, sorted(plugins))) or "none"
            yield (
                f"{variable} names {name!r}, but no installed plugin has this name. The nearest "
                f"names are: {near}."
            )


def _is_near(group: str) -> bool:
    """Whether a group of entry points was probably meant to be ours."""
    squashed = re.sub(r"[^a-z0-9]", "", group.lower())
    near = difflib.get_close_matches(squashed, _NEAR_GROUPS, n=1, cutoff=0.9)
    return group != ENTRY_POINT_GROUP and bool(near)
