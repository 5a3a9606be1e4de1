"""The description of a file's adapters: JSON in the metadata of a safetensors file.

The file calls an array `PATH:NAME`, as in `layers/0:lora_A`. Later versions may add keys.
"""

import dataclasses
import itertools
import json
from collections.abc import Iterable, Mapping
from typing import Any

from .._paths import FEW, bullets, show_path
from .._sets import LayerForm
from ._container import MalformedError, brief, parse_json
from ._kinds import (
    ALPHA,
    BOOL,
    CLASS_NAME,
    COUNT,
    DISTRIBUTION,
    PATH,
    SHAPE,
    TEXT,
    TEXTS,
    VERSION,
    Kind,
    check,
    is_count,
    is_number,
    is_text,
    matching,
)
from ._metadata import check_metadata
from ._sums import Part, parts_in

# The key in the metadata, and the version of the format.
KEY = "jno.lora"
FORMAT_VERSION = 4


@dataclasses.dataclass(frozen=True)
class Entry:
    """One adapter of a file: its class by name, and the names of the arrays in its `state()`.

    - `distribution`, `version`: of the plugin that provides the class; else `None` and `""`.
    - `base_values`: a hash of the layer's values, if the file has one.
    - `members`, `trains_weights`: of a sum of adapters, whose arrays are `NAME/...` and `weights`.
    """

    path: str
    wrapper: str
    distribution: str | None
    version: str
    variant: str | None
    rank: int | None
    alpha: float | None
    arrays: tuple[str, ...]
    layer: LayerForm
    base_values: str | None = None
    members: tuple[Part, ...] = ()
    trains_weights: bool = False

    @property
    def tensors(self) -> dict[str, str]:
        """By name in the state, the name in the file of each array."""
        return {name: f"{self.path}:{name}" for name in self.arrays}

    def as_json(self) -> dict[str, Any]:
        """The entry as the file holds it, under its path."""
        form = self.layer
        arrays = {path: {"shape": shape, "dtype": dtype} for path, shape, dtype in form.arrays}
        layer = {"class": form.layer, "stack_ndim": form.stack_ndim, "arrays": arrays}
        values = {name: getattr(self, name) for name in _ADAPTER} | {"layer": layer}
        if not self.members:
            return values
        members = {part.name: part.as_json() for part in self.members}
        return values | {"members": members, "trains_weights": self.trains_weights}


@dataclasses.dataclass(frozen=True)
class Section:
    """The part of a file that a plugin reads: an `Extension`, with its arrays by name only."""

    distribution: str
    kind: str
    reader: str
    content: dict[str, Any]
    arrays: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Extension:
    """What a plugin keeps in a file of adapters: `save_extended` writes it, `load_extended` reads.

    - `distribution`: of the plugin. Readers without the plugin are told to install it.
    - `kind`: what the file holds, for messages: `"conditional adapters"`.
    - `reader`: the function that loads the file: `"jno_lora_conditional.load_conditional"`.
    - `content`: a dict of JSON: printable text, finite numbers, bools, `None`, and lists and dicts
        of these. `jno-lora inspect` shows it.
    - `arrays`: by name.
    """

    distribution: str
    kind: str
    reader: str
    content: Mapping[str, Any]
    arrays: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Configuration:
    """The adapters of a file, and the versions of its format and of the libraries that wrote it.

    - `shared`: the names of the arrays that several adapters use.
    - `metadata`: from the user.
    - `extension`: what a plugin keeps in the file. Without the plugin, the adapters say too little.
    """

    entries: tuple[Entry, ...]
    versions: dict[str, str]
    shared: tuple[str, ...] = ()
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)
    extension: Section | None = None

    @property
    def format_version(self) -> int:
        # Older versions can read files without these. They skip metadata.
        if any(entry.members for entry in self.entries):
            return 4
        if self.extension is not None:
            return 3
        return 2 if self.shared else 1

    @property
    def shared_tensors(self) -> dict[str, str]:
        # No path begins with slashes.
        return {name: f"//shared:{name}" for name in self.shared}

    @property
    def extension_tensors(self) -> dict[str, str]:
        names = () if self.extension is None else self.extension.arrays
        return {name: f"//extension:{name}" for name in names}

    def dump(self) -> str:
        """The text for the metadata. **Raises:** `MalformedError` if `parse` reads it otherwise."""
        for entry in self.entries:
            paths = [path for path, _, _ in entry.layer.arrays]
            for twice in {path for path in paths if paths.count(path) > 1}:
                raise MalformedError(
                    f"two arrays of the layer at {show_path(entry.path)!r} have the path "
                    f"{twice!r}: a dict key in it holds a slash. Rename the key"
                )
        adapters = {entry.path: entry.as_json() for entry in self.entries}
        values: dict[str, Any] = {
            "format_version": self.format_version,
            "versions": self.versions,
        }
        values |= {"shared": self.shared} if self.shared else {}
        values |= {"metadata": self.metadata} if self.metadata else {}
        if self.extension is not None:
            values["extension"] = dataclasses.asdict(self.extension)
        text = json.dumps(values | {"adapters": adapters})
        if Configuration.parse(text) != self:
            raise MalformedError("its configuration would not be read as it was written")
        return text

    @classmethod
    def parse(cls, content: str) -> "Configuration":
        """The configuration in the metadata of a file. **Raises:** `MalformedError`."""
        configuration = parse_json(content, "its configuration")
        check(configuration, _VERSIONED)
        version = configuration["format_version"]
        if version > FORMAT_VERSION:  # the rest may differ
            raise MalformedError(
                f"it has the format version {version}, this jno-lora reads up to {FORMAT_VERSION}. "
                "Upgrade it with\n    pip install -U jno-lora\n"
            )
        check(configuration, _CONFIGURATION)
        entries = itertools.starmap(_entry, configuration["adapters"].items())
        shared = configuration.get("shared") or ()
        metadata = configuration.get("metadata") or {}
        check_metadata(metadata)
        extension = _section(configuration.get("extension"))
        versions = configuration["versions"]
        return cls(tuple(entries), versions, tuple(shared), metadata, extension)

    def check_tensors(self, tensors: Iterable[str]) -> None:
        """**Raises:** `MalformedError` unless these are the names of all arrays of all adapters."""
        names = [tensor for entry in self.entries for tensor in entry.tensors.values()]
        names += [*self.shared_tensors.values(), *self.extension_tensors.values()]
        lists = [*(entry.arrays for entry in self.entries), self.shared]
        lists += [] if self.extension is None else [self.extension.arrays]
        if len(set(names)) < sum(map(len, lists)):
            raise MalformedError("two of its arrays have the same name")
        missing, added = set(names).difference(tensors), set(tensors).difference(names)
        lines = [f"{brief(name)}: in its configuration only" for name in sorted(missing)]
        lines += [f"{brief(name)}: not in its configuration" for name in sorted(added)]
        if lines:
            raise MalformedError(
                f"its arrays are not the arrays of its adapters:\n{bullets(lines, FEW)}\n"
            )


def section_of(extension: Extension | None) -> Section | None:
    """The extension without the values of its arrays."""
    if extension is None:
        return None
    texts = extension.distribution, extension.kind, extension.reader
    return Section(*texts, dict(extension.content), tuple(extension.arrays))


def _section(extension: Any) -> Section | None:
    if extension is None:
        return None
    check(extension, _EXTENSION, "extension")
    texts = extension["distribution"], extension["kind"], extension["reader"]
    return Section(*texts, extension["content"], tuple(extension["arrays"]))


def _is_content(value: Any) -> bool:
    """Whether it is JSON that is safe to show: printable text and finite numbers."""
    if isinstance(value, dict | list):
        inner = [*value, *value.values()] if isinstance(value, dict) else value
        return all(map(_is_content, inner))
    return value is None or isinstance(value, bool) or is_text(value) or is_number(value)


def _entry(path: str, adapter: dict[str, Any]) -> Entry:
    values: dict[str, Any] = {name: adapter.get(name) for name in _ADAPTER}
    layer = values["layer"]
    arrays = ((key, tuple(info["shape"]), info["dtype"]) for key, info in layer["arrays"].items())
    form = LayerForm(layer["class"], tuple(arrays), layer["stack_ndim"])
    values |= {"arrays": tuple(values["arrays"]), "layer": form}
    check(adapter.get("trains_weights"), BOOL.or_null(), f"adapters/{path}/trains_weights")
    trains_weights = bool(adapter.get("trains_weights"))
    members = parts_in(adapter.get("members"), path)
    return Entry(path, **values, members=members, trains_weights=trains_weights)


_ADAPTER = {
    "wrapper": CLASS_NAME,
    "distribution": DISTRIBUTION.or_null(),
    "version": VERSION,
    "variant": TEXT.or_null(),
    "rank": COUNT.or_null(),
    "alpha": ALPHA.or_null(),
    "base_values": matching("a hash", r"[a-z0-9_]{1,20}:[0-9a-f]{8,128}").or_null(),
    "arrays": TEXTS,
    "layer": {
        "class": TEXT,
        "stack_ndim": Kind("a whole number from 0 to 32", lambda x: is_count(x) and x <= 32),
        "arrays": {TEXT: {"dtype": TEXT, "shape": SHAPE}},
    },
}
_VERSIONED = {"format_version": Kind("a whole number from 1", lambda x: is_count(x) and x > 0)}
_CONFIGURATION = {
    "versions": {TEXT: TEXT},
    "adapters": {PATH: _ADAPTER},
    "shared": TEXTS.or_null(),
}
_EXTENSION = {
    # Messages show these three, and a command with the distribution.
    "distribution": DISTRIBUTION,
    "kind": Kind(
        "printable text of at most 100 characters", lambda x: is_text(x) and len(x) <= 100
    ),
    "reader": matching(
        "the dotted name of a function", r"(?!.{101})[A-Za-z_0-9]+(\.[A-Za-z_0-9]+)+"
    ),
    "content": Kind(
        "a JSON object of printable text and finite numbers",
        lambda x: isinstance(x, dict) and _is_content(x),
    ),
    "arrays": TEXTS,
}
