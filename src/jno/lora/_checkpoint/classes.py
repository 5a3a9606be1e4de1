"""The classes of the adapters in a file: given by the caller, or provided by a plugin."""

import re
from collections.abc import Iterable, Mapping
from typing import TypeAlias

from .._contract.matrix_adapter import Composite, Member
from .._contract.problems import check_contract
from .._contract.wrapper import LoRAWrapper
from .._errors import PluginError, SelectionError
from .._paths import listed, show_path
from .._registry.registry import Registry
from .format import Configuration, Described

Classes: TypeAlias = type[LoRAWrapper] | Iterable[type[LoRAWrapper]] | None
# The problems of adapters as lines for a message, each with the exception behind it.
Problems = dict[str, Exception | None]


def classes_of(
    configuration: Configuration, wrappers: Classes, registry: Registry
) -> tuple[dict[str, type[LoRAWrapper]], Problems]:
    """The class of each adapter by path, and a problem for each class that is not found."""
    given = _by_name(wrappers)
    section = configuration.extension
    reader = "load_adapters" if section is None else section.reader
    paths_by_class: dict[str, list[str]] = {}
    for path, x in configuration.adapters.items():
        name = repr((x.wrapper, x.distribution, x.version, x.members, x.trains_weights))
        paths_by_class.setdefault(name, []).append(path)
    classes: dict[str, type[LoRAWrapper]] = {}
    problems: Problems = {}
    for paths in paths_by_class.values():
        try:
            cls = _class_of(configuration.adapters[paths[0]], given, registry, reader)
            classes |= dict.fromkeys(paths, cls)
        except ImportError as err:  # such as `PluginError` and `MissingLibraryError`
            problems[f"{listed([*map(show_path, paths)], 3)}: {err}"] = err
    return classes, problems


def _by_name(given: Classes) -> dict[str, type[LoRAWrapper]]:
    wrappers = [given] if isinstance(given, type) else list(given or ())
    for cls in wrappers:
        check_contract(cls)
    classes = {cls.__name__: cls for cls in wrappers}
    if len(classes) < len({*wrappers}):
        raise SelectionError(
            f"Two classes of `wrappers` have the same name: {', '.join(map(repr, wrappers))}. Load "
            "the adapters of each class in a separate call, with strict=False."
        )
    return classes


def _class_of(
    entry: Described, given: Mapping[str, type[LoRAWrapper]], registry: Registry, reader: str
) -> type[LoRAWrapper]:
    """The class of an entry, with its members if it is a composite. Raises as `_provided`."""
    cls = given.get(entry.wrapper) or _provided(entry, registry, reader)
    if entry.members is None and not issubclass(cls, Composite):
        return cls
    if entry.members is None or not issubclass(cls, Composite):
        raise PluginError(f"the file and the installed {entry.wrapper} differ in having members")
    members = [
        Member(name, _class_of(x, given, registry, reader), x.rank, x.alpha, x.trains)
        for name, x in entry.members.items()
    ]
    return cls.of_members(tuple(members), bool(entry.trains_weights))


def _provided(entry: Described, registry: Registry, reader: str) -> type[LoRAWrapper]:
    """The class that the plugin of an entry provides.

    **Raises:** `PluginError` or `MissingLibraryError`, with advice on what to install or pass.

    - `reader`: the function that reads the file, for the message.
    """
    name, distribution, version = entry.wrapper, entry.distribution, entry.version
    # Package indexes and bounds do not support local versions, such as "1.0+cpu" (PEP 440).
    requirement = f"{distribution}>={version.partition('+')[0]}".removesuffix(">=")
    advice = f'If you trust this file:\n    pip install -U "{requirement}"\n'
    if distribution is None or not registry.discover:
        advice = f"Pass it: {reader}(..., wrappers=[{name}]), or call its package's own loader"
    try:
        provided = registry.provided(distribution, name)
    except PluginError as err:
        problem = err if distribution else f"{name} is a class that no plugin provides"
        raise PluginError(f"{problem}. {advice}") from err
    if provided.version and _major_minor(provided.version) < _major_minor(version):
        raise PluginError(
            f"it was saved with {name} of {distribution} {version}, which is newer than the "
            f"installed {provided.version}. {advice}"
        )
    return provided.cls


def _major_minor(version: str) -> list[int]:
    return [*map(int, re.findall(r"\d+", version)), 0, 0][:2]
