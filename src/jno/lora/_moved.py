"""Names of `jno.lora` that are defined in plugins, and imported on first use.

Also lists the names that a module of imports exports.
"""

import importlib
import inspect
from importlib import metadata
from typing import Any

from ._errors import imported_for

# By extra: the extra `combine` installs the package `jno_lora_combine`.
_PLUGINS = {
    "combine": (
        *("adapter_effects", "combine", "combine_with_report", "plot_adapters"),
        *("new_picture", "scale_adapters", "shrink", "split_adapters", "stack_adapters"),
        *("sum_adapters", "take_adapters", "to_lora"),
        *("AdapterEffect", "AdapterEffects", "AdapterSum", "UpdateReport", "UpdateRow"),
    ),
    "compare": ("Comparison", "ComparisonRow", "compare"),
    "peft": ("write_together",),
    "train": (
        *("Allocation", "AllocationRow", "Statistics"),
        *("allocate", "calibrate", "check_calibrate", "penalty", "retain"),
    ),
    "zoo": ("Triplets", "known_factors"),
}
NAMES = {name: extra for extra, names in _PLUGINS.items() for name in names}


def moved(module: str, name: str) -> Any:
    """The object `name` of a plugin, for a module of the core that has no such name.

    **Raises:** `MissingLibraryError` that names the extra, if the plugin is not installed;
    `AttributeError` if no plugin has the name.
    """
    if name not in NAMES:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    extra = NAMES[name]
    with imported_for(f"{module}.{name}", extra, f"jno_lora_{extra}"):
        return getattr(importlib.import_module(f"jno_lora_{extra}"), name)


def installed_names() -> set[str]:
    """The names whose plugins are installed."""
    missing = {x for x in _PLUGINS if not any(metadata.distributions(name=f"jno_lora_{x}"))}
    return {name for name, extra in NAMES.items() if extra not in missing}


def exported(namespace: dict[str, Any]) -> list[str]:
    """The public names of a module of imports, without modules, which an import hook may add."""
    public = (name for name in namespace if not name.startswith("_"))
    return [name for name in public if not inspect.ismodule(namespace[name])]
