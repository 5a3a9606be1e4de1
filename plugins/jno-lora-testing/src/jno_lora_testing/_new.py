"""`jno-lora new`: a plugin to start from, as files that work."""

import keyword
import pathlib
import re
import string
from typing import NamedTuple

import importlib_metadata
from packaging.requirements import Requirement

from jno.lora import JnoLoraError, PluginRecord
from jno.lora.extending import RESERVED_WORDS, normalise_word

_CODE = """\
```python
from jno.lora import Net

net = Net(model).freeze().lora(rank=4, wrapper="{}")
```"""


class Kind(NamedTuple):
    """A kind of plugin that `jno-lora new` writes.

    - `templates`: folders of templates. Their files become the files of the plugin.
    - `adds`: what the plugin adds, for its description.
    - `needs`, `tests`: the distributions that the plugin and its tests depend on.
    - `use`: a code block for the README, which uses the plugin.
    - `then`: what the author changes or finds beside the file to edit.
    """

    templates: tuple[str, ...]
    adds: str
    needs: tuple[str, ...] = ("jno-lora",)
    tests: tuple[str, ...] = ("jno-lora-testing[complete]",)
    use: str = _CODE.format("$variant")
    then: str = "The kit compares the adapters with `cases.py` beside it, so change that too."


_ZOO = ("jno-lora", "jno-lora-zoo")
KINDS = {
    "opaque": Kind(("one_adapter", "cases", "opaque"), "`$adapter` for eqx.nn.$layer"),
    "method": Kind(("zoo", "cases", "method"), "`$adapter` for the zoo's kinds of layer", _ZOO),
    "layer": Kind(
        ("zoo", "cases", "layer"),
        "Every method of the zoo for the layer `$adapter`",
        _ZOO,
        use=_CODE.format("lora"),
    ),
    "router": Kind(
        ("one_adapter", "cases", "router"),
        "`$adapter`, a router of low-rank experts",
        (*_ZOO, "jno-lora-routed"),
    ),
    "command": Kind(
        ("command",),
        "The command `jno-lora $variant`",
        tests=("jno-lora-testing", "jno-lora-zoo"),
        use="```\njno-lora $variant adapters.safetensors\n```",
        then="`tests/test_command.py` tests the command.",
    ),
}

# The inputs of three cases for the kit, by the wrapped layer.
_INPUTS = {
    "linear": {
        "first_input": "jax.random.normal(key, (6,))",
        "second_input": "jax.random.normal(key, (3,))",
        "third_input": "jax.random.normal(key, (4,))",
    },
    "embedding": {
        "first_input": "jax.random.randint(key, (), 0, 6)",
        "second_input": "jax.random.randint(key, (), -3, 0)",  # negative indices
        "third_input": "jax.random.randint(key, (), 0, 4)",
    },
}


def create(
    name: str,
    kind: str,
    layer: str | None,
    directory: pathlib.Path,
    version: str,
    installed: tuple[PluginRecord, ...],
) -> pathlib.Path:
    """Write the plugin `jno-lora-NAME` below `directory`, and return its folder.

    - `kind`: one of `KINDS`.
    - `layer`: for an opaque adapter, `"linear"` or `"embedding"`; by default the layer in the name,
        or else `"linear"`.
    - `version`: the version of jno-lora that the plugin depends on.
    """
    variant = re.sub(r"[-_.\s]+", "-", name.strip().lower()).removeprefix("jno-lora-").strip("-")
    if why := _why_not(name, variant, installed):
        raise JnoLoraError(f"{why}. Choose another name, such as my-{variant or 'adapter'}.")
    distribution = f"jno-lora-{variant}"
    package = distribution.replace("-", "_")
    target = directory / distribution
    if target.exists():
        raise JnoLoraError(f"{target} exists already; nothing was written. Choose another name.")
    layer = layer or ("embedding" if "embedding" in variant else "linear")
    major, minor, *_ = version.split(".")
    versions = f">={major}.{minor},<{major}.{int(minor) + 1}"
    names = {
        "distribution": distribution,
        "package": package,
        "adapter": _camel_case(variant),
        "variant": variant,
        "layer": layer.capitalize(),
    }
    chosen = KINDS[kind]
    words = {
        **names,
        **_INPUTS[layer],
        "unbiased": "use_bias=False, " if layer == "linear" else "",
        "adds": string.Template(chosen.adds).substitute(names),
        "use": string.Template(chosen.use).substitute(names),
        "then": chosen.then,
        # Adapters have a tier, and the adapters that are written here reach the highest.
        "keywords": '"jno-lora-complete"' if "cases" in chosen.templates else "",
        "requires": ", ".join(f'"{need}{versions}"' for need in chosen.needs),
        "tests": ", ".join(['"pytest"', *(f'"{need}{versions}"' for need in chosen.tests)]),
    }
    for folder in ("shared", *chosen.templates):
        templates = pathlib.Path(__file__).parent / "templates" / folder
        for template in templates.rglob("*.txt"):
            path = f"{template.relative_to(templates)}".removesuffix(".txt")
            file = target / path.replace("PACKAGE", package)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(string.Template(template.read_text("utf-8")).substitute(words), "utf-8")
    return target


def _why_not(name: str, variant: str, installed: tuple[PluginRecord, ...]) -> str:
    """Why a new adapter cannot have this name, or an empty text."""
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", variant):
        return (
            f"{name!r} is not a package name. Use letters, digits and dashes, beginning with a "
            "letter"
        )
    if keyword.iskeyword(adapter := _camel_case(variant)):
        return f"{name!r} would be a class named {adapter}, which is a word of Python"
    distribution = f"jno-lora-{variant}"
    # The extras of jno-lora name its distributions.
    cores = importlib_metadata.distributions(name="jno-lora")
    needs = {Requirement(need).name for core in cores for need in core.requires or ()}
    if distribution in needs:
        return f"{distribution} is a distribution of jno-lora itself"
    # The names and variants that `wrapper=` finds in other distributions, each with its meaning.
    taken: dict[str, str] = dict.fromkeys(RESERVED_WORDS, "a word that `wrapper=` knows")
    for record in installed:
        for wrapper in record.wrappers if record.distribution != distribution else ():
            for word in filter(None, (wrapper.name, wrapper.adapter.variant)):
                taken.setdefault(normalise_word(word), f"a name of {wrapper.qualified_name}")
    why = taken.get(normalise_word(variant))
    return f'{variant!r} is {why}, so `wrapper="{variant}"` would be ambiguous' if why else ""


def _camel_case(variant: str) -> str:
    return "".join(word.capitalize() for word in variant.split("-"))
