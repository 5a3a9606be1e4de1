"""The public interface as text, a name a line: what `public_api.txt` holds.

`python -m docs.update` takes it down. `plugin_api_1.txt` is the part that plugins of
`jno_lora_api = 1` may rely on. The command only adds lines to it: a line goes, by hand, one release
after docs/changelog.md has its name under "Deprecated".

Names, kinds, parameters and defaults; not annotations, whose form depends on the interpreter.
"""

import dataclasses
import difflib
import importlib
import inspect
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from jno_lora_zoo import METHODS, LoRA

HERE = pathlib.Path(__file__).parent
FILE = HERE / "public_api.txt"
CHANGELOG = HERE.parents[1] / "docs" / "changelog.md"
PLUGIN_FILE = HERE / "plugin_api_1.txt"
# What plugins may rely on, as docs/contract.md says: names, and all names of some modules.
PROMISED = re.compile(
    r"(class )?(jno\.lora\.(About|LoRAWrapper|LowRankForm|MatrixAdapter|Term|Shared"
    r"|Statistic|hookimpl|register|Net)"
    r"|jno\.lora\.WrapperError|jno\.lora\.extending\.\w+"
    r"|jno_lora_testing\.(WrapperCase|CheckResult|standard_cases|Symmetry|cyclic_shift)"
    r"|jno_lora_testing\.(permutation|rotation|invariant)"
    r"|jno_lora_testing\.(check_wrapper|parametrize_with_checks|run_checks)"
    # `Additive` and `MatrixLayer` have all members of their bases.
    r"|jno_lora_zoo\.(adapters_for|adapters_defined_in|Additive|MatrixLayer|MeshAxes|Update)"
    r"|jno_lora_zoo\.(is_float_array|in_compute_dtype|cast_like|sharded_over|unchanged)"
    r"|jno_lora_zoo\.(scaled|mixed|rotated|cayley|row_norms|largest|smallest|uniform_matrix)"
    r"|jno_lora_zoo\.(made_when_named|collect_statistics)"
    r"|jno_lora_zoo\.(Method|Scaled|LoRA|LoRALinear|MatricesLayer|LayerKind|LinearLayer|ConvLayer|ConvTransposeLayer)(?=\()"
    r"|jno_lora_routed\.(Router|MoELoRA|testing\.check_router))(?!\w)"
)
CORE = (
    *("jno.lora", "jno.lora.extending"),
    *("jno_lora_train.optim", "jno_lora_peft", "jno_lora_testing"),
)
# The packages that define these names.
FORWARDED = {"jno", "jno_lora_testing", "jno_lora_combine", "jno_lora_train"}
PLUGINS = (
    *("zoo", "arrays", "attention", "bank", "foundax", "combine", "compare", "conditional"),
    *("conditional.testing", "e3nn", "haliax", "jno", "routed", "routed.testing", "train"),
    *("convert", "proof", "uncertainty"),
)


def lines() -> list[str]:
    """The public interface as it is: of the core, of the plugins, and of the command line."""
    found: list[str] = []
    for package in CORE:
        module = importlib.import_module(package)
        for name in sorted(module.__all__):
            found += _described(f"{package}.{name}", getattr(module, name), FORWARDED)
    for plugin in PLUGINS:
        package = f"jno_lora_{plugin}"
        module = importlib.import_module(package)
        for name in sorted(module.__all__):
            found += _of_plugin(f"{package}.{name}", getattr(module, name), package)
    return [*found, *_commands()]


def promised(lines: list[str]) -> list[str]:
    """The lines that plugins may rely on, and the hooks."""
    from jno.lora._registry import hookspecs

    hooks = [value for name, value in vars(hookspecs).items() if name.startswith("jno_lora_")]
    signatures = [f"hook {hook.__name__}{_signature(hook)}" for hook in hooks]
    return [*signatures, *filter(PROMISED.match, lines)]


def broken(promises: list[str], now: list[str], changelog: str) -> list[str]:
    """The promises that do not hold any more, although no earlier release deprecated them.

    A new parameter with a default, after the others, breaks nothing.
    """
    earlier = re.split(r"^## ", changelog, flags=re.MULTILINE)[2:]
    sections = [text for release in earlier for text in re.split(r"^### ", release, flags=re.M)]
    deprecated = " ".join(text for text in sections if text.startswith("Deprecated"))
    words = {*re.findall(r"[\w.]+", " ".join(re.findall(r"`([^`]+)`", deprecated)))}
    subjects = {line: re.sub(r"^(class|hook) ", "", line).split("(")[0] for line in promises}
    return [
        line
        for line, subject in subjects.items()
        if not any(_keeps(line, new) for new in now)
        and re.split(r"[ :]", subject)[0].removeprefix("jno.lora.") not in words
    ]


def _keeps(promise: str, line: str) -> bool:
    if promise == line:
        return True
    before, bracket, after = promise.rpartition(")")
    added = line.removeprefix(before).removesuffix(f"{bracket}{after}").removeprefix(", ")
    is_longer = bool(bracket) and line.startswith(before) and line.endswith(f"{bracket}{after}")
    return is_longer and all("=" in word or word == "*" for word in added.split(", "))


def _commands() -> Iterator[str]:
    """The lines to type: `jno-lora COMMAND ARGUMENT`, and each option with its default."""
    import click

    from jno.lora._commands._cli import cli

    context = click.Context(cli)
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        arguments = [p for p in command.params if isinstance(p, click.Argument)]
        shown = [p.metavar or str(p.name).upper() for p in arguments]
        yield " ".join(["jno-lora", name, *shown])
        for option in command.params:
            if isinstance(option, click.Option):
                # The value that stands for a missing default depends on the version of click.
                has_default = isinstance(option.default, int | str | pathlib.Path)
                default = f" = {option.default}" if has_default else ""
                choices = getattr(option.type, "choices", None)
                of = option.type.name if choices is None else "|".join(map(str, choices))
                kind = ": flag" if option.is_flag else f" {of}{default}"
                yield f"jno-lora {name} {'|'.join(option.opts)}{kind}"


def _described(name: str, value: Any, ours: set[str]) -> Iterator[str]:
    if not isinstance(value, type):
        # An object that is not a function (`hookimpl`) has the signature of another library.
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
    if issubclass(value, tuple):
        fields |= set(getattr(value, "_fields", ()))  # of a named tuple
    fields = {name for name in fields if not name.startswith("_")}
    for member in sorted({*fields, *_members(value, ours)}):
        is_field = member in fields
        yield f"{name}.{member}: field" if is_field else f"{name}.{member}{_member(value, member)}"


def _of_plugin(name: str, value: Any, package: str) -> Iterator[str]:
    """Of an adapter, what users write and what files hold; of the rest, what plugins build on."""
    from jno.lora import LoRAWrapper

    is_adapter = isinstance(value, type) and issubclass(value, LoRAWrapper)
    if not is_adapter or not isinstance(getattr(value, "adapter_fields", None), tuple):
        yield from _described(name, value, {package})
        return
    adapter: Any = value
    attributes = ("adapter_fields", "variant", "auto")
    said = ", ".join(f"{attribute} = {getattr(adapter, attribute)!r}" for attribute in attributes)
    # A method's adapter of several matrices has the method on one matrix inside.
    has_law = getattr(adapter, "law", None) or getattr(adapter, "of_one_matrix", None)
    is_by_hand = adapter in METHODS or "__init__" in vars(adapter)
    if has_law is None or is_by_hand or adapter.method not in METHODS:
        yield f"class {name}{_signature(adapter.__init__)}: {said}"
    elif adapter.method is LoRA:
        # A method on a kind of layer. Its options are the method's: one stands for all of the kind.
        said = f"variant = {adapter.variant!r}, auto = {adapter.auto!r}"
        yield f"class {name}: {said}; a class for each method"


def _members(cls: type, ours: set[str]) -> set[str]:
    """The public names that its classes of these packages define."""
    names = {n for k in cls.__mro__ if k.__module__.partition(".")[0] in ours for n in vars(k)}
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
    parameters = inspect.signature(function).parameters.values()
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


def taken_down(file: pathlib.Path | None = None) -> list[str]:
    """The lines of a file, by default `FILE`."""
    return (file or FILE).read_text().splitlines()


def files() -> dict[pathlib.Path, str]:
    """The text of both files."""
    now, promises = lines(), taken_down(PLUGIN_FILE)
    return {
        FILE: "\n".join([*now, ""]),
        PLUGIN_FILE: "\n".join([*sorted({*promises, *promised(now)}), ""]),
    }
