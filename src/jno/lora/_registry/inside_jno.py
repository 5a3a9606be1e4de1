"""Run functions of plugins if `jno.lora` is imported inside jNO, another package `jno`."""

import contextlib
import os

from .._errors import reason_of, warn
from .plugins import find_plugins, import_plugin, is_blocked

# Its entry points are functions without arguments.
GROUP = "jno.lora.inside_jno"


def call_inside_jno() -> None:
    """Call the functions that plugins register in the group above.

    This runs when jNO imports `jno.lora`. Errors become warnings, because `import jno` must still
    work.
    """
    plugins = find_plugins(group=GROUP)
    troubles: list[str] = []
    if not plugins and os.environ.get("JNO_LORA_JNO") != "0":
        troubles.append(
            "jNO uses its own adapters in `net.lora`, and would train adapters of jno.lora wrong. "
            'Let jNO use these:\n    pip install "jno-lora[jno]"\n'
            "or set the environment variable JNO_LORA_JNO=0 to silence this warning."
        )
    for plugin in plugins:
        if not is_blocked(plugin):
            try:
                import_plugin(plugin)()
            except Exception as err:
                name = plugin.distribution
                troubles.append(f"The plugin {name} failed inside jNO: {reason_of(err)}")
    with contextlib.suppress(Warning):  # where warnings are errors
        for trouble in troubles:
            warn(trouble)
