"""The description of a file's adapters: JSON in the metadata of a safetensors file.

An array is called `PATH:NAME` in the file, such as `layers/0:lora_A`. The configuration lists the
names. Unknown keys are skipped, so that later versions may add some.
"""

import dataclasses
import json
import math
import re
from collections.abc import Iterable
from typing import Any

from .._paths import FEW, bullets, show_path
from .._sets import LayerForm
from ._container import check_shape
from ._json import MalformedError, brief, expect, is_count, parse_json

# The key in the metadata, and the version of the format.
KEY = "jno.lora"
FORMAT_VERSION = 1

_MOST_CHARACTERS = 20_000
_MOST_RANK = 2**31 - 1
# A normalised name (PEP 503), and the characters of a version. Both go into a command that is
# shown, so nothing else may get in.
_DISTRIBUTION = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_VERSION = re.compile(r"[0-9A-Za-z.+!-]{1,100}")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One adapter of a file, without its arrays.

    - `wrapper`: the name of its class.
    - `distribution`, `version`: of the plugin that provides the class; `None` and `""` without one.
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
        return {name: f"{self.path}:{name}" for name in self.arrays}

    def as_json(self) -> dict[str, Any]:
        """The entry as it stands in the file, under its path."""
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


@dataclasses.dataclass(frozen=True)
class Configuration:
    """The adapters of a file, and the versions of its format and of the libraries that wrote it."""

    entries: tuple[Entry, ...]
    versions: dict[str, str]
    format_version: int = FORMAT_VERSION

    def dump(self) -> str:
        """The text for the metadata.

        **Raises:** `MalformedError` if `parse` would not give the same back.
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
        """The configuration in the metadata of a file.

        **Raises:** `MalformedError`.
        """
        what = "its configuration"
        found = parse_json(text, what)
        version = _count(found.get("format_version"), f"the format version of {what}", 2**31, 1)
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
        names = [tensor for entry in self.entries for tensor in entry.tensors.values()]
        if len(set(names)) < sum(len(entry.arrays) for entry in self.entries):
            raise MalformedError("two of its arrays have the same name")
        missing, added = set(names).difference(tensors), set(tensors).difference(names)
        lines = [f"{brief(name)}: in its configuration only" for name in sorted(missing)]
        lines += [f"{brief(name)}: not in its configuration" for name in sorted(added)]
        if lines:
            raise MalformedError(
                f"its arrays are not those of its adapters:\n{bullets(lines, FEW)}\n"
            )


def _entry(path: str, found: Any) -> Entry:
    parts = _text(path, "the path of an adapter", least=0).split("/")
    if path and not {"", ".", ".."}.isdisjoint(parts):  # the path of the root is empty
        raise MalformedError(
            f"the path {brief(path)} of an adapter is invalid: its parts, between slashes, must be "
            "names, not empty, '.' or '..'"
        )
    what = f"the adapter at {show_path(path)!r} in its configuration"
    found = _table(found, what)
    distribution, version, variant = map(found.get, ("distribution", "version", "variant"))
    for name, pattern, no in (("distribution", _DISTRIBUTION, None), ("version", _VERSION, "")):
        text = found.get(name)
        is_one = isinstance(text, str) and pattern.fullmatch(text) is not None and len(text) <= 100
        expect(text == no or is_one, text, f"the {name} of {what}", f"a {name}")
    # `null` stands for the rank or alpha of an adapter without one.
    rank, alpha, arrays = found.get("rank", ""), found.get("alpha", ""), found.get("arrays")
    is_number = type(alpha) in (int, float) and math.isfinite(alpha)
    expect(alpha is None or is_number, alpha, f"the alpha of {what}", "a finite number")
    expect(isinstance(arrays, list), arrays, f"the arrays of {what}", "a list")
    # It goes into code that a message shows.
    wrapper = _text(found.get("wrapper"), f"the wrapper of {what}")
    expect(wrapper.isidentifier(), wrapper, f"the wrapper of {what}", "the name of a class")
    return Entry(
        path=path,
        wrapper=wrapper,
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
    return LayerForm(
        layer=_text(found.get("class"), f"the class of {what}"),
        arrays=tuple(_array(path, form, what) for path, form in arrays.items()),
        stack_ndim=_count(found.get("stack_ndim"), f"the stack_ndim of {what}", 32),
    )


def _array(path: str, found: Any, what: str) -> tuple[str, tuple[int, ...], str]:
    found = _table(found, f"an array of {what}")
    shape = found.get("shape")
    is_shape = isinstance(shape, list) and all(map(is_count, shape))
    expect(is_shape, shape, f"the shape of an array of {what}", "a list of whole numbers")
    check_shape(shape, f"an array of {what}")
    dtype = _text(found.get("dtype"), f"a dtype in {what}")
    return _text(path, f"a path in {what}", least=0), tuple(shape), dtype


def _table(found: Any, what: str) -> dict[str, Any]:
    expect(isinstance(found, dict), found, what, "a JSON object")
    return found


def _text(found: Any, what: str, least: int = 1) -> str:
    # Printable, since it goes into messages and onto terminals.
    is_printable = isinstance(found, str) and found.isprintable()
    expect(is_printable, found, what, "printable text")
    if not least <= len(found) <= _MOST_CHARACTERS:
        raise MalformedError(
            f"{what} has {len(found):,} characters; 1 to {_MOST_CHARACTERS:,} are read"
        )
    return found


def _count(found: Any, what: str, most: int, least: int = 0) -> int:
    is_in_range = is_count(found) and least <= found <= most
    expect(is_in_range, found, what, f"a whole number from {least} to {most:,}")
    return found
