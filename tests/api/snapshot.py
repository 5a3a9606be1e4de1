"""The public interface as text, a name a line: what `public_api.txt` holds.

    python tests/api/snapshot.py            # what changed
    python tests/api/snapshot.py --write    # takes it down, once CHANGELOG.md tells of it

Names, kinds, parameters and defaults; not annotations, whose form depends on the interpreter.
"""

import dataclasses
import difflib
import inspect
import pathlib
import re
import sys
from collections.abc import Iterator
from typing import Any

HERE = pathlib.Path(__file__).parent
FILE = HERE / "public_api.txt"
CHANGELOG = HERE.parents[1] / "CHANGELOG.md"


def lines() -> list[str]:
    """The public interface as it is."""
    import jno.lora
    import jno.lora.peft
    import jno.lora.testing
    import jno_lora_zoo

    found: list[str] = []
    for module in (jno.lora, jno.lora.peft, jno.lora.testing):
        for name in sorted(module.__all__):
            found += _described(f"{module.__name__}.{name}", getattr(module, name))
    for name in sorted(jno_lora_zoo.__all__):
        found += _of_zoo(f"jno_lora_zoo.{name}", getattr(jno_lora_zoo, name))
    return found


def _described(name: str, value: Any, ours: str = "jno") -> Iterator[str]:
    if not isinstance(value, type):
        # What is no function (`hookimpl`) is of another library, and its signature theirs.
        is_function = inspect.isfunction(inspect.unwrap(value))
        yield f"{name}{_signature(value)}" if is_function else f"{name}: {type(value).__name__}"
        return
    bases = ", ".join(base.__name__ for base in value.__bases__)
    if issubclass(value, BaseException) or getattr(value, "_is_protocol", False):
        yield f"class {name}: {bases}"
    else:
        build = value.__new__ if issubclass(value, tuple) else value.__init__
        yield f"class {name}{_signature(build)}: {bases}"
    fields = (
        {f.name for f in dataclasses.fields(value)} if dataclasses.is_dataclass(value) else set()
    )
    fields |= set(getattr(value, "_fields", ()))  # of a named tuple
    for member in sorted({*fields, *_members(value, ours)}):
        is_field = member in fields
        yield f"{name}.{member}: field" if is_field else f"{name}.{member}{_member(value, member)}"


def _of_zoo(name: str, value: Any) -> Iterator[str]:
    """Of an adapter, what users write and what files hold; of the rest, what plugins build on."""
    from jno.lora import LoRAWrapper

    is_adapter = isinstance(value, type) and issubclass(value, LoRAWrapper)
    if not is_adapter or not isinstance(getattr(value, "adapter_fields", None), tuple):
        yield from _described(name, value, "jno_lora_zoo")
        return
    adapter: Any = value
    attributes = ("adapter_fields", "variant", "auto")
    said = ", ".join(f"{attribute} = {getattr(adapter, attribute)!r}" for attribute in attributes)
    yield f"class {name}{_signature(adapter.__init__)}: {said}"


def _members(cls: type, ours: str) -> set[str]:
    """What its classes of that package define for others to use."""
    names = {n for k in cls.__mro__ if k.__module__.partition(".")[0] == ours for n in vars(k)}
    return {name for name in names if not name.startswith("_") or name == "__call__"}


def _member(cls: type, name: str) -> str:
    static = inspect.getattr_static(cls, name)
    if isinstance(static, property):
        return ": property"
    value = getattr(cls, name)
    if not callable(value):
        return f" = {value!r}"
    kind = ": classmethod" if isinstance(static, classmethod) else ""
    return _signature(value) + kind


def _signature(function: Any) -> str:
    """Parameters and their defaults, without annotations."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return "(?)"
    plain = [
        p.replace(annotation=p.empty, default=p.default if p.default is p.empty else _Shown(p))
        for p in parameters
        if p.name not in ("self", "_cls")
    ]
    return str(inspect.Signature(plain))


class _Shown:
    """A default value as it is shown: a class or a function by its name."""

    def __init__(self, parameter: inspect.Parameter):
        default = parameter.default
        self.text = getattr(default, "__qualname__", None) or repr(default)
        assert " at 0x" not in self.text, f"{parameter} has no lasting form"

    def __repr__(self) -> str:
        return self.text


def difference(before: list[str], now: list[str]) -> list[str]:
    """The lines that went and came, with `-` and `+`."""
    compared = difflib.unified_diff(before, now, lineterm="", n=0)
    return [line for line in compared if line[0] in "+-" and line[:3] not in ("---", "+++")]


def untold(changed: list[str], changelog: str) -> list[str]:
    """The changes of which the first section of the changelog has no word.

    As far as that can be checked: the name that changed, or the class whose member it is, must
    stand there. Whether what stands there is true is for a reader to say.
    """
    section = re.split(r"^## ", changelog, flags=re.MULTILINE)[1]
    words = set(re.findall(r"\w+", section))
    return [line for line in changed if not words & set(_names(line))]


def _names(line: str) -> list[str]:
    """Of `+class jno.lora.Net.lora(rank=4)`: `Net` and `lora`."""
    dotted = re.match(r"[+-](?:class )?([\w.]+)", line)
    assert dotted is not None, line
    packages = ("jno", "lora", "peft", "testing", "jno_lora_zoo")
    parts = dotted[1].split(".")
    while len(parts) > 1 and parts[0] in packages:
        parts.pop(0)
    return parts


def main(arguments: list[str]) -> int:
    """Show what changed, and with `--write` take it down. Returns the exit status."""
    before = FILE.read_text().splitlines() if FILE.exists() else []
    now = lines()
    changed = difference(before, now)
    print("\n".join(changed) or "Nothing has changed.")
    if "--write" not in arguments or not changed:
        return 0
    missing = untold(changed, CHANGELOG.read_text()) if before else []
    if missing:
        print(f"\n{CHANGELOG.name} has no word, in its first section, of\n" + "\n".join(missing))
        return 1
    FILE.write_text("\n".join([*now, ""]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
