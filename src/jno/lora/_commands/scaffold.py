"""`jno-lora new`: a plugin to start from, as six files that work."""

import keyword
import pathlib
import re
import string
from importlib import resources

from .._errors import JnoLoraError
from .._registry import API_VERSION, FIRST_PARTY, ZOO_METHODS, ZOO_NAMES, PluginRecord, squash

# The input of a test, by layer.
_SAMPLES = {
    "linear": "jax.random.normal(key, (6,))",
    "embedding": "jax.random.randint(key, (), 0, 6)",
}


def create(
    name: str,
    layer: str | None,
    directory: pathlib.Path,
    version: str,
    installed: tuple[PluginRecord, ...],
) -> pathlib.Path:
    """Write the plugin `jno-lora-NAME` below `directory`, and return its folder.

    - `name`: of the adapter, such as `embedding-bias`.
    - `layer`: `"linear"` or `"embedding"`; by default the one in the name, else `"linear"`.
    - `version`: of jno-lora, for the plugin's dependency on it.
    - `installed`: the plugins whose adapters must not have the same name.

    **Raises:** `JnoLoraError`, before anything is written, if the name is impossible or taken, or
    the folder exists.
    """
    short = re.sub(r"[-_.\s]+", "-", name.strip().lower()).removeprefix("jno-lora-").strip("-")
    distribution = f"jno-lora-{short}"
    package = distribution.replace("-", "_")
    adapter = "".join(part.capitalize() for part in short.split("-"))
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", short) or keyword.iskeyword(adapter):
        raise JnoLoraError(
            f"{name!r} makes no package name. Use letters, digits and dashes, beginning with a "
            "letter, such as embedding-bias."
        )
    if distribution in FIRST_PARTY:
        raise JnoLoraError(
            f"{distribution} is a distribution of jno-lora itself. Choose another name."
        )
    if squash(short) in {"auto", *map(squash, (*ZOO_METHODS, *ZOO_NAMES))}:
        raise JnoLoraError(
            f"{short!r} is a name of the zoo, or means something to `wrapper=`: the adapter's "
            f'variant would be taken for it, and `wrapper="{short}"` be ambiguous. Choose a name '
            f"of your own, such as my-{short}."
        )
    for wrapper in (wrapper for record in installed for wrapper in record.wrappers):
        called = (wrapper.cls.variant or "", wrapper.name)
        if wrapper.distribution != distribution and squash(short) in map(squash, called):
            raise JnoLoraError(
                f"{short!r} is what {wrapper.qualified_name} is called, so that "
                f'`wrapper="{short}"` would be ambiguous. Choose another name.'
            )
    layer = layer or ("embedding" if "embedding" in short else "linear")
    target = directory / distribution
    if target.exists():
        raise JnoLoraError(f"{target} exists already; nothing was written. Choose another name.")
    major, minor, *_ = version.split(".")
    names = {
        "distribution": distribution,
        "package": package,
        "adapter": adapter,
        "variant": short,
        "layer": layer.capitalize(),
        "make": f"eqx.nn.{layer.capitalize()}(6, 4, key=key)",
        "sample": _SAMPLES[layer],
        "api": str(API_VERSION),
        "requires": f"jno-lora>={major}.{minor},<{major}.{int(minor) + 1}",
    }
    files = {
        "pyproject.toml": target / "pyproject.toml",
        "README.md": target / "README.md",
        "LICENSE": target / "LICENSE",
        "adapter.py": target / "src" / package / "__init__.py",
        "plugin.py": target / "src" / package / "plugin.py",
        "test_conformance.py": target / "tests" / "test_conformance.py",
    }
    templates = resources.files("jno.lora._commands") / "templates"
    for template, file in files.items():
        text = (templates / f"{template}.txt").read_text("utf-8")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(string.Template(text).substitute(names), "utf-8")
    return target
