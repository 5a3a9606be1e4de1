"""`jno-lora new`: a plugin to start from, as six files that work."""

import keyword
import pathlib
import re
import string
from importlib import resources

from .._errors import JnoLoraError
from .._registry import API_VERSION, FIRST_PARTY, ZOO_METHODS, ZOO_NAMES, PluginRecord, squash

# By layer: the input of a test. The templates know the rest.
_SAMPLES = {
    "linear": "jax.random.normal(key, (6,))",
    "embedding": "jax.random.randint(key, (), 0, 6)",
}


def create(
    name: str,
    layer: str | None,
    directory: pathlib.Path,
    version: str,
    installed: tuple[PluginRecord, ...] = (),
) -> pathlib.Path:
    """Write the plugin `jno-lora-NAME` below `directory`, and return its folder.

    **Arguments:**

    - `name`: of the adapter, such as `embedding-bias`.
    - `layer`: `"linear"` or `"embedding"`; by default the one in the name, else `"linear"`.
    - `version`: of jno-lora, for the plugin's dependency on it.
    - `installed`: the plugins whose adapters must not have the same name.

    **Raises:** `JnoLoraError` if the name makes no package name, or is one of the zoo's or of an
    installed adapter, or the folder exists. Nothing is written then.
    """
    short = re.sub(r"[-_.\s]+", "-", name.strip().lower()).removeprefix("jno-lora-").strip("-")
    package = f"jno_lora_{short.replace('-', '_')}"
    adapter = "".join(part.capitalize() for part in short.split("-"))
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", short) or keyword.iskeyword(adapter):
        raise JnoLoraError(
            f"{name!r} makes no package name. Use letters, digits and dashes, beginning with a "
            "letter, such as embedding-bias."
        )
    if f"jno-lora-{short}" in FIRST_PARTY:
        raise JnoLoraError(
            f"jno-lora-{short} is a distribution of jno-lora itself. Choose another name."
        )
    if squash(short) in {"auto", *map(squash, (*ZOO_METHODS, *ZOO_NAMES))}:
        raise JnoLoraError(
            f"{short!r} is a name of the zoo, or means something to `wrapper=`: the adapter's "
            f'variant would be taken for it, and `wrapper="{short}"` be ambiguous. Choose a name '
            f"of your own, such as my-{short}."
        )
    for wrapper in (wrapper for record in installed for wrapper in record.wrappers):
        called = (wrapper.cls.variant or "", wrapper.name)
        if wrapper.distribution != f"jno-lora-{short}" and squash(short) in map(squash, called):
            raise JnoLoraError(
                f"{short!r} is what {wrapper.qualified_name} is called, so that "
                f'`wrapper="{short}"` would be ambiguous. Choose another name.'
            )
    layer = layer or ("embedding" if "embedding" in short else "linear")
    target = directory / f"jno-lora-{short}"
    if target.exists():
        raise JnoLoraError(f"{target} exists already; nothing was written. Choose another name.")
    major, minor, *_ = version.split(".")
    names = {
        "distribution": f"jno-lora-{short}",
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
        target / "pyproject.toml": "pyproject.toml",
        target / "README.md": "README.md",
        target / "LICENSE": "LICENSE",
        target / "src" / package / "__init__.py": "adapter.py",
        target / "src" / package / "plugin.py": "plugin.py",
        target / "tests" / "test_conformance.py": "test_conformance.py",
    }
    templates = resources.files("jno.lora._commands") / "templates"
    texts = {
        path: string.Template((templates / f"{template}.txt").read_text("utf-8")).substitute(names)
        for path, template in files.items()
    }
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    return target
