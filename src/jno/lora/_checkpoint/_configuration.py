"""The description of a file's adapters: JSON in the metadata of a safetensors file.

The file calls an array `PATH:NAME`, as in `layers/0:lora_A`. Later versions may add keys.
"""

import dataclasses
import itertools
import json
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from .._paths import FEW, bullets, show_path
from .._sets import LayerForm
from ._container import MalformedError, brief, fits_numpy, parse_json

# The key in the metadata, and the version of the format.
KEY = "jno.lora"
FORMAT_VERSION = 2


@dataclasses.dataclass(frozen=True)
class Entry:
    """One adapter of a file: its class by name, and the names of the arrays in its `state()`.

    - `distribution`, `version`: of the plugin that provides the class; else `None` and `""`.
    - `base_values`: a hash of the layer's values, if the file has one.
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

    @property
    def tensors(self) -> dict[str, str]:
        """By name in the state, the name in the file of each array."""
        return {name: f"{self.path}:{name}" for name in self.arrays}

    def as_json(self) -> dict[str, Any]:
        """The entry as the file holds it, under its path."""
        form = self.layer
        arrays = {path: {"shape": shape, "dtype": dtype} for path, shape, dtype in form.arrays}
        layer = {"class": form.layer, "stack_ndim": form.stack_ndim, "arrays": arrays}
        return {name: getattr(self, name) for name in _ADAPTER} | {"layer": layer}


@dataclasses.dataclass(frozen=True)
class Configuration:
    """The adapters of a file, and the versions of its format and of the libraries that wrote it.

    - `shared`: the names of the arrays that several adapters use.
    """

    entries: tuple[Entry, ...]
    versions: dict[str, str]
    shared: tuple[str, ...] = ()

    @property
    def format_version(self) -> int:
        # Older versions can read files without shared arrays.
        return 2 if self.shared else 1

    @property
    def shared_tensors(self) -> dict[str, str]:
        # No path begins with slashes.
        return {name: f"//shared:{name}" for name in self.shared}

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
        versions = {"format_version": self.format_version, "versions": self.versions}
        shared = {"shared": self.shared} if self.shared else {}
        text = json.dumps(versions | shared | {"adapters": adapters})
        if Configuration.parse(text) != self:
            raise MalformedError("its configuration would not be read as it was written")
        return text

    @classmethod
    def parse(cls, content: str) -> "Configuration":
        """The configuration in the metadata of a file. **Raises:** `MalformedError`."""
        configuration = parse_json(content, "its configuration")
        _check(configuration, _VERSIONED)
        version = configuration["format_version"]
        if version > FORMAT_VERSION:  # the rest may differ
            raise MalformedError(
                f"it has the format version {version}, this jno-lora reads up to {FORMAT_VERSION}. "
                "Upgrade it with\n    pip install -U jno-lora\n"
            )
        _check(configuration, _CONFIGURATION)
        entries = itertools.starmap(_entry, configuration["adapters"].items())
        shared = configuration.get("shared") or ()
        return cls(tuple(entries), configuration["versions"], tuple(shared))

    def check_tensors(self, tensors: Iterable[str]) -> None:
        """**Raises:** `MalformedError` unless these are the names of all arrays of all adapters."""
        names = [tensor for entry in self.entries for tensor in entry.tensors.values()]
        names += self.shared_tensors.values()
        if len(set(names)) < sum(len(entry.arrays) for entry in self.entries) + len(self.shared):
            raise MalformedError("two of its arrays have the same name")
        missing, added = set(names).difference(tensors), set(tensors).difference(names)
        lines = [f"{brief(name)}: in its configuration only" for name in sorted(missing)]
        lines += [f"{brief(name)}: not in its configuration" for name in sorted(added)]
        if lines:
            raise MalformedError(
                f"its arrays are not the arrays of its adapters:\n{bullets(lines, FEW)}\n"
            )


def _entry(path: str, adapter: dict[str, Any]) -> Entry:
    values: dict[str, Any] = {name: adapter.get(name) for name in _ADAPTER}
    layer = values["layer"]
    arrays = ((key, tuple(info["shape"]), info["dtype"]) for key, info in layer["arrays"].items())
    form = LayerForm(layer["class"], tuple(arrays), layer["stack_ndim"])
    return Entry(path, **values | {"arrays": tuple(values["arrays"]), "layer": form})


class _Kind(NamedTuple):
    """A kind of JSON values: its name, and a test of a value."""

    name: str
    holds: Callable[[Any], bool]

    def or_null(self) -> "_Kind":
        return _Kind(self.name, lambda x: x is None or self.holds(x))


def _check(value: Any, kind: Any, where: str = "") -> None:
    """**Raises:** `MalformedError` unless `value` is of a kind: a `_Kind`, or an object of kinds.

    A missing key is null. Unknown keys are skipped. A `_Kind` as the only key stands for all keys.
    """
    if isinstance(kind, _Kind):
        if not kind.holds(value):
            problem = f"{where} is {brief(value)}, which is not {kind.name}"
            raise MalformedError(f"in its configuration, {problem}")
        return
    _check(value, _OBJECT, where)
    for key, inner in kind.items():
        for name in value if isinstance(key, _Kind) else [key]:
            if name is not key:
                _check(name, key, f"a key of {where}")
            _check(value.get(name), inner, f"{where}/{name}".removeprefix("/"))


def _is_text(value: Any) -> bool:
    # Messages and terminals show it.
    return isinstance(value, str) and value.isprintable() and len(value) <= 20_000


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**31  # a bool is an `int`, too


def _matching(name: str, pattern: str) -> _Kind:
    return _Kind(name, lambda x: isinstance(x, str) and re.fullmatch(pattern, x) is not None)


_OBJECT = _Kind("a JSON object", lambda x: isinstance(x, dict))
_TEXT = _Kind("printable text of at most 20,000 characters", _is_text)
_COUNT = _Kind("a whole number from 0 to 2^31 - 1", _is_count)
_PATH = _Kind(
    "the path of an adapter: printable names between slashes, not empty, '.' or '..'",
    # The path of the root is empty.
    lambda x: _is_text(x) and (not x or {"", ".", ".."}.isdisjoint(x.split("/"))),
)
_SHAPE = _Kind(
    "a list of whole numbers, or is too large",
    lambda x: isinstance(x, list) and all(type(n) is int and n >= 0 for n in x) and fits_numpy(x),
)
_TEXTS = _Kind("a list of printable text", lambda x: isinstance(x, list) and all(map(_is_text, x)))
_ADAPTER = {
    # Messages show code with the class, and a command with the distribution and its version. So
    # these three must not hold anything else.
    "wrapper": _Kind("the name of a class", lambda x: _is_text(x) and x.isidentifier()),
    "distribution": _matching(
        "a normalised name (PEP 503)", r"(?!.{101})[a-z0-9]+(-[a-z0-9]+)*"
    ).or_null(),
    "version": _matching("a version", r"[0-9A-Za-z.+!-]{0,100}"),
    "variant": _TEXT.or_null(),
    "rank": _COUNT.or_null(),
    "alpha": _Kind(
        "a finite number", lambda x: type(x) in (int, float) and abs(x) <= sys.float_info.max
    ).or_null(),
    "base_values": _matching("a hash", r"[a-z0-9_]{1,20}:[0-9a-f]{8,128}").or_null(),
    "arrays": _TEXTS,
    "layer": {
        "class": _TEXT,
        "stack_ndim": _Kind("a whole number from 0 to 32", lambda x: _is_count(x) and x <= 32),
        "arrays": {_TEXT: {"dtype": _TEXT, "shape": _SHAPE}},
    },
}
_VERSIONED = {"format_version": _Kind("a whole number from 1", lambda x: _is_count(x) and x > 0)}
_CONFIGURATION = {
    "versions": {_TEXT: _TEXT},
    "adapters": {_PATH: _ADAPTER},
    "shared": _TEXTS.or_null(),
}
