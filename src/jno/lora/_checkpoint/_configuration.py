"""What a file says of its adapters: JSON in the metadata of a safetensors file.

The arrays of an adapter are called `PATH:NAME`, such as `layers/0:lora_A`; which names there are is
part of the configuration. Keys that are not known are skipped, so that they may be added later.
"""

import dataclasses
import json
import math
import re
from collections.abc import Iterable
from typing import Any

from .._paths import FEW, bullets, show_path
from .._sets import LayerForm
from ._container import shape_of
from ._json import MalformedError, brief, is_count, parse_json

# The key in the metadata, and the version of what stands there.
KEY = "jno.lora"
FORMAT_VERSION = 1

_MOST_CHARACTERS = 20_000
_MOST_RANK = 2**31 - 1
# The normal form of PEP 503, and what a version may be made of. They go into a command that a
# message shows, so they must not be able to say anything else.
_DISTRIBUTION = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_VERSION = re.compile(r"[0-9A-Za-z.+!-]{1,100}")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One adapter of a file, without its arrays.

    - `wrapper`: the name of its class; `distribution`: of the plugin that provides it, `None` for a
        class that no plugin provides; `version`: that of the distribution.
    - `arrays`: the names in its `state()`.
    """

    path: str
    wrapper: str
    distribution: str | None
    version: str
    variant: str | None
    rank: int | None
    alpha: float | None
    layer: LayerForm
    arrays: tuple[str, ...]

    @property
    def tensors(self) -> dict[str, str]:
        """The names of its arrays in the file, by those in the state."""
        return {name: self.tensor(name) for name in self.arrays}

    def tensor(self, name: str) -> str:
        """The name in the file of the array `name` of its state."""
        return f"{self.path}:{name}"

    def as_json(self) -> dict[str, Any]:
        """What a file says of it, beside its path."""
        return {
            "wrapper": self.wrapper,
            "distribution": self.distribution,
            "version": self.version,
            "variant": self.variant,
            "rank": self.rank,
            "alpha": self.alpha,
            "arrays": self.arrays,
            "layer": {
                "class": self.layer.layer,
                "stack_ndim": self.layer.stack_ndim,
                "arrays": {
                    path: {"shape": shape, "dtype": dtype}
                    for path, shape, dtype in self.layer.arrays
                },
            },
        }

    def describe(self) -> str:
        """For messages: the class and where it comes from."""
        version = f" {self.version}" if self.version else ""
        return f"{self.wrapper} of {self.distribution}{version}"


@dataclasses.dataclass(frozen=True)
class Configuration:
    """What a file says: its adapters, and the versions of its format and of what wrote it."""

    entries: tuple[Entry, ...]
    versions: dict[str, str]
    format_version: int = FORMAT_VERSION

    def dump(self) -> str:
        """As text for the metadata.

        **Raises:** `MalformedError` if it could not be read again.
        """
        text = json.dumps(
            {
                "format_version": self.format_version,
                "versions": self.versions,
                "adapters": {entry.path: entry.as_json() for entry in self.entries},
            }
        )
        for entry in self.entries:
            paths = [path for path, _, _ in entry.layer.arrays]
            twice = next((path for path in paths if paths.count(path) > 1), None)
            if twice is not None:
                raise MalformedError(
                    f"two arrays of the layer at {show_path(entry.path)!r} have the path "
                    f"{twice!r}: a dict key in it holds a slash. Rename the key"
                )
        if Configuration.parse(text) != self:
            raise MalformedError("what was written is read as something else")
        return text

    @classmethod
    def parse(cls, text: str) -> "Configuration":
        """From the metadata of a file.

        **Raises:** `MalformedError`.
        """
        what = "its configuration"
        found = parse_json(text, what)
        version = found.get("format_version")
        if not is_count(version) or version < 1:
            raise MalformedError(f"{what} has the format version {brief(version)}, which is none")
        if version > FORMAT_VERSION:
            raise MalformedError(
                f"it has the format version {version}, this jno-lora reads up to {FORMAT_VERSION}. "
                "Upgrade it with\n    pip install -U jno-lora\n"
            )
        adapters = _table(found.get("adapters"), f"the adapters of {what}")
        versions = _table(found.get("versions"), f"the versions of {what}")
        return cls(
            tuple(_entry(path, adapter) for path, adapter in adapters.items()),
            {_text(k, what): _text(v, f"a version in {what}") for k, v in versions.items()},
            version,
        )

    def check_tensors(self, tensors: Iterable[str]) -> None:
        """**Raises:** `MalformedError` unless these are the names of all arrays of all adapters."""
        names = [entry.tensor(name) for entry in self.entries for name in entry.arrays]
        if len(set(names)) < len(names):
            raise MalformedError("two of its arrays have the same name")
        missing, added = set(names).difference(tensors), set(tensors).difference(names)
        lines = [f"{brief(name)}: in its configuration only" for name in sorted(missing)]
        lines += [f"{brief(name)}: not in its configuration" for name in sorted(added)]
        if lines:
            raise MalformedError(
                f"its arrays are not those of its adapters:\n{bullets(lines, FEW)}\n"
            )


def _entry(path: str, found: Any) -> Entry:
    if path:  # the path of the root is empty
        _check_path(path)
    what = f"the adapter at {show_path(path)!r} in its configuration"
    found = _table(found, what)
    distribution, version = found.get("distribution"), found.get("version")
    if distribution is not None:
        distribution = _matching(_DISTRIBUTION, distribution, f"the distribution of {what}")
    if version != "":
        version = _matching(_VERSION, version, f"the version of {what}")
    variant = found.get("variant")
    # `null` is that of an adapter that has none.
    rank, alpha = found.get("rank", ""), found.get("alpha", "")
    is_number = type(alpha) in (int, float) and math.isfinite(alpha)
    if not (alpha is None or is_number):
        raise MalformedError(f"the alpha of {what} is {brief(alpha)}, which is no finite number")
    arrays = found.get("arrays")
    if not isinstance(arrays, list):
        raise MalformedError(f"the arrays of {what} are no list")
    return Entry(
        path=path,
        wrapper=_class_name(found.get("wrapper"), f"the wrapper of {what}"),
        distribution=distribution,
        version=version,
        variant=None if variant is None else _text(variant, f"the variant of {what}"),
        rank=None if rank is None else _count(rank, f"the rank of {what}", _MOST_RANK),
        alpha=alpha,
        layer=_layer(found.get("layer"), f"the layer of {what}"),
        arrays=tuple(_text(name, f"an array of {what}") for name in arrays),
    )


def _layer(found: Any, what: str) -> LayerForm:
    found = _table(found, what)
    arrays = _table(found.get("arrays"), f"the arrays of {what}")
    forms = ((path, _table(form, f"an array of {what}")) for path, form in arrays.items())
    return LayerForm(
        layer=_text(found.get("class"), f"the class of {what}"),
        arrays=tuple(
            (
                _text(path, f"a path in {what}", least=0),
                shape_of(form.get("shape"), f"an array of {what}"),
                _text(form.get("dtype"), f"a dtype in {what}"),
            )
            for path, form in forms
        ),
        stack_ndim=_count(found.get("stack_ndim"), f"the stack_ndim of {what}", 32),
    )


def _check_path(path: str) -> None:
    _text(path, "the path of an adapter")
    if not {"", ".", ".."}.isdisjoint(path.split("/")):
        raise MalformedError(
            f"the path {brief(path)} of an adapter is none: its parts, between slashes, must be "
            "names, not empty, '.' or '..'"
        )


def _table(found: Any, what: str) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise MalformedError(f"{what} is {brief(found)}, which is no JSON object")
    return found


def _text(found: Any, what: str, least: int = 1) -> str:
    # Printable, since it goes into messages and onto terminals.
    if not isinstance(found, str) or not found.isprintable():
        raise MalformedError(f"{what} is {brief(found)}, which is no printable text")
    if not least <= len(found) <= _MOST_CHARACTERS:
        raise MalformedError(
            f"{what} has {len(found):,} characters; 1 to {_MOST_CHARACTERS:,} are read"
        )
    return found


def _class_name(found: Any, what: str) -> str:
    # It goes into code that a message shows.
    name = _text(found, what)
    if not name.isidentifier():
        raise MalformedError(f"{what} is {brief(name)}, which is no name of a class")
    return name


def _matching(pattern: re.Pattern[str], found: Any, what: str) -> str:
    if not isinstance(found, str) or not pattern.fullmatch(found) or len(found) > 100:
        raise MalformedError(f"{what} is {brief(found)}, which is none")
    return found


def _count(found: Any, what: str, most: int) -> int:
    if not is_count(found) or found > most:
        raise MalformedError(f"{what} is {brief(found)}, not a whole number from 0 to {most:,}")
    return found
