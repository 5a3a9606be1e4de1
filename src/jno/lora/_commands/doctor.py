"""`jno-lora doctor`: what is installed, and whether it is in order."""

import contextlib
import os
import platform
import sys
import textwrap
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import importlib_metadata
import jax
from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet

from .. import __path__ as _package_path
from .._contract.problems import normalise_word
from .._contract.statistics import statistic_keys
from .._errors import PluginError
from .._paths import nearest
from .._registry.hookspecs import ENTRY_POINT_GROUP
from .._registry.plugins import (
    BROKEN,
    PluginRecord,
    RegisteredWrapper,
    blocked_names,
    first_party,
    normalise,
)
from .._registry.registry import default_registry
from .._version import __version__

_LIBRARIES = ("jax", "jaxlib", "equinox", "pluggy", "importlib-metadata", "safetensors")
# Groups that authors write by mistake, without dots, dashes and underscores.
_NEAR_GROUPS = {f"jnolora{end}" for end in ("", "plugins", "adapters", "wrappers")}


def examine(
    records: tuple[PluginRecord, ...],
    commands: Mapping[str, PluginRecord],
    left_out: list[str],
    *,
    is_report: bool,
) -> tuple[str, bool]:
    """The facts and troubles of this installation, and whether there is any trouble.

    - `commands`: the names of the commands that plugins add, each with its plugin.
    - `left_out`: a line for each command that is left out.
    - `is_report`: whether the text is one block of Markdown without private paths.
    """
    facts = [*_versions(records), *_machine()]
    troubles: list[str] = []
    for record, tell in default_registry().hooks("jno_lora_doctor"):
        try:
            tell(facts=facts, troubles=troubles)
        except Exception as err:
            troubles.append(f"The hook `jno_lora_doctor` of {record.describe()}: {err!r}")
    facts += (fact for record in records for fact in _additions(record, commands))
    facts += sorted((n, repr(x)) for n, x in os.environ.items() if n.startswith("JNO_LORA_"))
    troubles += _plugin_troubles(records)
    troubles += (f"Left out of the command line: {line}" for line in left_out)
    troubles += (*_distribution_troubles(), *_unmatched_names(records))

    width = max(len(name) for name, _ in facts)
    indent = (width + 2) * " "
    wrap = textwrap.TextWrapper(100, "", indent, break_long_words=False, break_on_hyphens=False)
    shown = _without_private_paths if is_report else str
    paragraphs = ["\n".join(wrap.fill(f"{name:<{width}}  {shown(x)}") for name, x in facts)]
    paragraphs += (f"TROUBLE: {shown(trouble)}" for trouble in troubles)
    paragraphs += [f"{len(troubles)} {'trouble' if len(troubles) == 1 else 'troubles'} found."]
    text = "\n\n".join(paragraphs)
    fence = "`" * 8  # an error may contain backticks
    return f"{fence}text\n{text}\n{fence}" if is_report else text, bool(troubles)


def _versions(records: tuple[PluginRecord, ...]) -> Iterator[tuple[str, str]]:
    """The versions of Python, of jno-lora and its libraries, and our packages without plugins."""
    yield "Python", platform.python_version()
    yield "jno-lora", __version__
    yield "jno.lora imported from", next(iter(_package_path))
    libraries = first_party() - {record.distribution for record in records}
    for name in (*_LIBRARIES, *sorted(libraries)):
        with contextlib.suppress(importlib_metadata.PackageNotFoundError):
            yield name, importlib_metadata.version(name)


def _machine() -> Iterator[tuple[str, str]]:
    """The devices of JAX. A driver error is listed as a fact, because it may be the bug."""
    yield "platform", platform.platform()
    yield "jax_enable_x64", str(jax.config.read("jax_enable_x64"))
    try:
        kinds = [f"{device.platform} {device.device_kind}" for device in jax.devices()]
        shown = ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds))
    except Exception as err:  # from any plugin of JAX
        shown = f"{type(err).__name__}: {err}"
    yield "devices", shown


def _additions(
    record: PluginRecord, commands: Mapping[str, PluginRecord]
) -> Iterator[tuple[str, str]]:
    """A plugin, and everything that it adds: a kind, and names."""
    status = f"{record.status}, {record.seconds:.2f} s, entry point {record.name!r}"
    yield f"{record.distribution} {record.version}", status
    classes = [wrapper.cls for wrapper in record.wrappers]
    names = {
        f"{len(classes)} adapters": sorted({cls.variant or cls.__name__ for cls in classes}),
        "hooks": sorted(hook.name for hook in record.hooks),
        "commands": [name for name, owner in commands.items() if owner is record],
        "statistics": sorted({key for cls in classes for key in statistic_keys(cls).values()}),
    }
    yield from ((f"  {kind}", ", ".join(listed)) for kind, listed in names.items() if listed)


def _plugin_troubles(records: tuple[PluginRecord, ...]) -> Iterator[str]:
    """A text for each problem with the plugins and their names, with what to do."""
    try:
        default_registry().defaults()
    except PluginError as err:
        yield f"`net.lora()` has no adapters to use. {err}"
    for record in records:
        if record.status in BROKEN:
            yield (
                f"The plugin {record.describe()} cannot be used ({record.status}). Upgrade or "
                f"uninstall it, or block it with JNO_LORA_BLOCK={record.distribution}.\n"
                + "".join(traceback.format_exception(record.error))
            )
    for wrapper in (wrapper for record in records for wrapper in record.wrappers):
        if owners := _other_owners(wrapper):
            name = wrapper.qualified_name
            yield f'The name of {name} also belongs to {owners}. Write `wrapper="{name}"`.'


def _other_owners(wrapper: RegisteredWrapper) -> str:
    """The distributions of other adapters that the bare name of an adapter means, if any."""
    family = default_registry().family(wrapper.name)
    rivals = [rival for rival in family if rival.cls is not wrapper.cls]
    if wrapper in family:  # with the other adapters of its variant
        rivals = [rival for rival in rivals if rival.name == wrapper.name]
    return ", ".join(sorted({rival.distribution for rival in rivals}))


def _distribution_troubles() -> Iterator[str]:
    """A text for each distribution whose metadata hide its plugin, or whose versions clash."""
    distributions: dict[str, Any] = {}
    for distribution in importlib_metadata.distributions():  # the first on `sys.path` counts
        with contextlib.suppress(FileNotFoundError):  # a half-removed installation
            distributions.setdefault(normalise(distribution.name), distribution)
    versions = {name: distribution.version for name, distribution in distributions.items()}
    versions["jno-lora"] = __version__  # also where it is imported without being installed
    ours = {"jno-lora", *first_party()}
    for name, distribution in distributions.items():
        shown = f"{distribution.name} {distribution.version}"
        groups = sorted({entry.group for entry in distribution.entry_points})
        is_near = any(normalise_word(group).replace(".", "") in _NEAR_GROUPS for group in groups)
        is_meant = (is_near or name.startswith("jno-lora-")) and name not in ours
        if is_meant and ENTRY_POINT_GROUP not in groups:
            yield (
                f"{shown} looks like a plugin, but its entry points are in {groups}, and plugins "
                f'are found by the group "{ENTRY_POINT_GROUP}". In its pyproject.toml, write '
                f'[project.entry-points."{ENTRY_POINT_GROUP}"], and install it again.'
            )
        for need, bounds in _requirements(distribution):
            if need in ours & versions.keys() and not bounds.contains(versions[need], True):
                yield (
                    f"{shown} needs {need}{bounds}, but {need} {versions[need]} is installed. "
                    f"Install versions that fit each other: pip install -U {name} {need}"
                )


def _requirements(distribution: Any) -> Iterator[tuple[str, SpecifierSet]]:
    """The names and bounds of the requirements that are not for an extra or another Python."""
    for text in distribution.requires or ():
        with contextlib.suppress(InvalidRequirement):  # metadata from before PEP 508
            need = Requirement(text)
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                yield normalise(need.name), need.specifier


def _unmatched_names(records: tuple[PluginRecord, ...]) -> Iterator[str]:
    """A text for each name in `JNO_LORA_BLOCK` that matches no plugin."""
    plugins = first_party() | {x for r in records for x in (r.distribution, normalise(r.name))}
    for name in sorted(blocked_names() - plugins):
        near = ", ".join(nearest(name, sorted(plugins)))
        yield f"JNO_LORA_BLOCK names {name!r}, which no plugin is called. Near it: {near}."


def _without_private_paths(text: str) -> str:
    """`text` with placeholders for directories that reveal who runs Python, and where."""
    places = {sys.prefix: "<environment>", os.getcwd(): "<here>", os.path.expanduser("~"): "~"}
    for path, name in places.items():
        if len(path) > 1:  # `/` would be found in every path
            text = text.replace(os.path.realpath(path), name).replace(path, name)
    return text
