"""`jno-lora doctor --report`: an installation as one block of Markdown, for a report of a bug."""

import os
import platform
import re
import sys
from collections.abc import Iterable, Iterator, Mapping

from .._paths import FEW
from .._registry import PluginRecord, first_party
from .distributions import Distribution
from .installed import versions


def report(
    records: tuple[PluginRecord, ...],
    present: Mapping[str, Distribution],
    problems: Iterable[str],
    told: Iterable[tuple[str, str]],
) -> str:
    """Versions, plugins, devices, variables of the environment, and problems. No private paths.

    - `present`: the installed distributions by normalised name.
    - `told`: the facts that plugins know of.
    """
    lines = [f"{name} {value}" for name, value in (*versions(), *told)]
    plugins = {record.distribution for record in records}
    lines += [str(present[name]) for name in sorted(present.keys() & first_party() - plugins)]
    lines += map(_plugin, records)
    lines += _machine()
    variables = sorted(name for name in os.environ if name.startswith("JNO_LORA_"))
    lines += [f"{name}={os.environ[name]!r}" for name in variables]
    lines += [f"\nPROBLEM: {problem}" for problem in problems]
    text = without_private_paths("\n".join(lines))
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}text\n{text}\n{fence}"


def _plugin(record: PluginRecord) -> str:
    names = [wrapper.name for wrapper in record.wrappers]
    few = len(names) <= FEW and record.distribution not in first_party()
    adapters = f": {', '.join(names)}" if few and names else ""
    plural = "" if len(names) == 1 else "s"
    return (
        f"{record.distribution} {record.version}, plugin {record.name!r}, {record.status}, "
        f"{len(names)} adapter{plural}{adapters}"
    )


def _machine() -> Iterator[str]:
    """The devices of JAX. A driver that does not fit is a line, because it may be the bug."""
    import jax

    yield platform.platform()
    yield f"jax_enable_x64 {jax.config.read('jax_enable_x64')}"
    try:
        kinds = [f"{device.platform} {device.device_kind}" for device in jax.devices()]
    except Exception as err:  # of whichever plugin of JAX
        yield f"devices: {type(err).__name__}: {err}"
        return
    counts = ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds))
    yield f"devices: {counts}"


def without_private_paths(text: str) -> str:
    """`text` with names for the directories that tell who runs Python, and where."""
    names = {
        sys.prefix: "<environment>",
        sys.base_prefix: "<python>",
        os.getcwd(): "<here>",
        os.path.expanduser("~"): "~",
    }
    names |= {os.path.realpath(path): name for path, name in names.items()}
    for path in sorted(names, key=len, reverse=True):
        if len(path) > 1:  # `/` would be found in every path
            # Lines are wrapped, so a space of a path may have become the end of a line.
            pattern = r"\s+".join(map(re.escape, path.split(" ")))
            text = re.sub(rf"{pattern}(?![\w-]|\.\w)", names[path], text)
    return text
