"""The description of a file's adapters: JSON in the metadata of a safetensors file.

The dataclasses below are its schema: `from_json` reads JSON as an annotated type, and `to_json`
writes it. The file calls an array `PATH:NAME`, as in `layers/0:lora_A`. Later
versions may add keys.
"""

import dataclasses
import functools
import json
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, NoReturn

from .._paths import FEW, bullets
from .._sets.set import LayerForm
from .file import MalformedError, brief, parse_json

# The key in the metadata, and the version of the format.
KEY = "jno.lora"
FORMAT_VERSION = 4
# Used instead of a path, for arrays that several adapters use and arrays of an extension.
SHARED, EXTENSION = "//shared", "//extension"


def _is_value(value: object) -> bool:
    """Whether metadata may contain `value`. A user's text may have line breaks and tabs."""
    if isinstance(value, list):
        return all(not isinstance(inner, list) and _is_value(inner) for inner in value)
    if isinstance(value, str):
        return value.replace("\n", "").replace("\t", "").isprintable()
    is_whole = type(value) is int and abs(value) < 2**64
    return isinstance(value, bool) or is_whole or (type(value) is float and math.isfinite(value))


# Further conditions on a value: a name and a test. Messages and terminals show text.
Text = Annotated[str, "printable text", str.isprintable]
# Messages show these in code, and in commands that install the distribution.
Name = Annotated[str, "a name in Python", re.compile(r"\w+(\.\w+)*").fullmatch]
Distribution = Annotated[
    str, "a normalised name (PEP 503)", re.compile(r"[a-z0-9]+(-[a-z0-9]+)*").fullmatch
]
Version = Annotated[str, "a version", re.compile(r"[0-9A-Za-z.+!-]*").fullmatch]
Path = Annotated[str, "the path of an adapter", lambda x: x.isprintable() and x[:1] != "/"]
Count = Annotated[int, "a whole number from 0", lambda x: x >= 0]
Number = Annotated[float, "a finite number", lambda x: abs(x) < math.inf]
Value = Annotated[
    Any, "printable text, a bool, a finite number of at most 64 bits, or a list of these", _is_value
]
Metadata = dict[Text, Value]


@dataclasses.dataclass(frozen=True)
class Array:
    """The shape and dtype of an array of a layer."""

    shape: tuple[Count, ...]
    dtype: Text


@dataclasses.dataclass(frozen=True)
class Layer:
    """The form of the layer that an adapter was made for."""

    class_: Text
    stack_ndim: Count
    arrays: dict[Text, Array]

    @classmethod
    def of(cls, form: LayerForm) -> "Layer":
        arrays = {path: Array(shape, dtype) for path, shape, dtype in form.arrays}
        return cls(form.layer, form.stack_ndim, arrays)

    @property
    def form(self) -> LayerForm:
        arrays = ((path, array.shape, array.dtype) for path, array in self.arrays.items())
        return LayerForm(self.class_, tuple(arrays), self.stack_ndim)


@dataclasses.dataclass(frozen=True)
class Described:
    """The class of an adapter by name, and the plugin that provides it, or `None` and `""`.

    - `members`: of a composite, such as a sum of adapters, the classes that it is made of.
    - `trains_weights`: of a composite, whether its weights train.
    """

    wrapper: Name
    distribution: Distribution | None
    version: Version
    variant: Text | None
    rank: Count | None
    alpha: Number | None
    members: "dict[Text, Part] | None" = dataclasses.field(default=None, kw_only=True)
    trains_weights: bool | None = dataclasses.field(default=None, kw_only=True)


@dataclasses.dataclass(frozen=True)
class Part(Described):
    """One member of a composite, and whether it trains."""

    trains: bool


@dataclasses.dataclass(frozen=True)
class Entry(Described):
    """One adapter of a file.

    - `base_values`: a hash of the layer's values, if the file has one.
    - `arrays`: the names in its `state()`.
    """

    base_values: Text | None
    arrays: tuple[Text, ...]
    layer: Layer


@dataclasses.dataclass(frozen=True)
class Section:
    """The part of a file that a plugin reads: an `Extension`, with its arrays by name only."""

    distribution: Distribution
    kind: Text
    reader: Name
    content: dict[str, Any]
    arrays: tuple[Text, ...]


@dataclasses.dataclass(frozen=True)
class Extension:
    """A plugin's data in a file of adapters, for `save_extended` and `load_extended`.

    - `distribution`: the plugin's distribution, which readers without the plugin must install.
    - `kind`: the contents of the file, for messages: `"conditional adapters"`.
    - `reader`: the function that loads the file: `"my_package.load_mine"`.
    - `content`: a dict of JSON: text, finite numbers, bools, `None`, and lists and dicts of these.
        `jno-lora inspect` shows it.
    - `arrays`: by name.
    """

    distribution: str
    kind: str
    reader: str
    content: Mapping[str, Any]
    arrays: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Configuration:
    """The adapters of a file by path, and the versions of the libraries that wrote it.

    - `shared`: the names of the arrays that several adapters use.
    - `metadata`: from the user.
    - `extension`: a plugin's data. Without the plugin, the adapters are incomplete.
    """

    versions: dict[Text, Text]
    shared: tuple[Text, ...] | None = None
    metadata: Metadata | None = None
    extension: Section | None = None
    adapters: dict[Path, Entry] = dataclasses.field(kw_only=True)

    @functools.cached_property
    def tensors(self) -> dict[str, dict[str, str]]:
        """By path (or `SHARED`, `EXTENSION`) and name, the name in the file of each array."""
        names = {path: entry.arrays for path, entry in self.adapters.items()}
        names[SHARED] = self.shared or ()
        names[EXTENSION] = self.extension.arrays if self.extension else ()
        return {path: {name: f"{path}:{name}" for name in names[path]} for path in names}

    def dump(self) -> str:
        """The text for the metadata. **Raises:** `MalformedError` if `parse` reads it otherwise."""
        try:
            content = {"format_version": FORMAT_VERSION} | to_json(self)
            text = json.dumps(content)
        except (TypeError, ValueError) as err:
            raise MalformedError(f"its configuration is not JSON: {err}") from err
        if Configuration.parse(text) != self:
            raise MalformedError("its configuration would not be read as it was written")
        return text

    @classmethod
    def parse(cls, text: str) -> "Configuration":
        """The configuration in the metadata of a file. **Raises:** `MalformedError`."""
        value = parse_json(text, "its configuration")
        version = from_json(int, value.get("format_version"), "format_version")
        if version != FORMAT_VERSION:  # the rest may differ
            advice = "Upgrade it with\n    pip install -U jno-lora\n"
            if version < FORMAT_VERSION:
                advice = "Versions before 0.4 wrote older ones: save the adapters again from there"
            raise MalformedError(
                f"it has the format version {version}, expected is {FORMAT_VERSION}. {advice}"
            )
        return from_json(cls, value, "")

    def check_tensors(self, tensors: Iterable[str]) -> None:
        """**Raises:** `MalformedError` unless these are the names of all arrays of all adapters."""
        names = [tensor for by_name in self.tensors.values() for tensor in by_name.values()]
        if len(set(names)) < len(names):
            raise MalformedError("two of its arrays have the same name")
        lines = [f"{brief(name)}: in its configuration only" for name in {*names} - {*tensors}]
        lines += [f"{brief(name)}: not in its configuration" for name in {*tensors} - {*names}]
        if lines:
            shown = bullets(sorted(lines), FEW)
            raise MalformedError(f"its arrays are not the arrays of its adapters:\n{shown}\n")


def to_json(value: object) -> Any:
    """A value of a type in this module as JSON, without the fields that are `None` by default."""
    if isinstance(value, dict):
        return {key: to_json(inner) for key, inner in value.items()}
    if not dataclasses.is_dataclass(value):
        return value
    fields = {f.name: (getattr(value, f.name), f.default) for f in dataclasses.fields(value)}
    return {key.rstrip("_"): to_json(x) for key, (x, default) in fields.items() if x is not default}


def from_json(kind: Any, value: object, where: str) -> Any:
    """`value` as a type: of JSON, a dataclass of this module, a container of these types, or a type
    with further conditions.

    A missing key is null. Unknown keys are skipped.

    **Raises:** `MalformedError`, which names the place, unless it is of this type.
    """
    if kind is Any or type(value) is kind or (kind is float and type(value) is int):
        return value
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        inner, expected, holds = arguments
        value = from_json(inner, value, where)
        return value if holds(value) else _refuse(value, expected, where)
    if origin in (typing.Union, types.UnionType):  # with None
        return None if value is None else from_json(arguments[0], value, where)
    if origin is tuple:
        return tuple(from_json(arguments[0], x, where) for x in from_json(list, value, where))
    if origin is dict:
        by_name: dict[str, Any] = {}
        for name, inner in from_json(dict, value, where).items():
            name = from_json(arguments[0], name, f"{where} (a key)")
            by_name[name] = from_json(arguments[1], inner, f"{where}/{name}")
        return by_name
    if dataclasses.is_dataclass(kind):
        found, fields = from_json(dict, value, where), dict[str, Any]()
        for name, inner in _types(kind).items():
            key = name.rstrip("_")  # `class_`
            fields[name] = from_json(inner, found.get(key), f"{where}/{key}")
        return kind(**fields)
    return _refuse(value, f"of the type {kind.__name__}", where)


def _refuse(value: object, expected: str, where: str) -> NoReturn:
    raise MalformedError(f"{where.lstrip('/')} is {brief(value)}, which is not {expected}")


@functools.cache
def _types(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind, include_extras=True)
