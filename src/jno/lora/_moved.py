"""Names of `jno.lora` that live in plugins: each is imported when somebody asks for it.

Also the names that a module of imports exports.
"""

import importlib
import inspect
from importlib import metadata
from typing import Any

from ._errors import imported_for

# By the package that defines them, the extra that installs it and the names.
_PLUGINS = {
    "jno_lora_combine": (
        "combine",
        (
            *("adapter_effects", "combine", "combine_with_report", "plot_adapters"),
            *("scale_adapters", "shrink", "stack_adapters", "take_adapters", "to_lora"),
            *("AdapterEffect", "AdapterEffects", "UpdateReport", "UpdateRow"),
        ),
    ),
    "jno_lora_compare": ("compare", ("Comparison", "ComparisonRow", "compare")),
    "jno_lora_zoo": ("zoo", ("Triplets",)),
    "jno_lora_train": (
        "train",
        (
            *("Allocation", "AllocationRow", "Statistics"),
            *("allocate", "calibrate", "check_calibrate", "retain"),
        ),
    ),
}
NAMES = {name: package for package, (_, names) in _PLUGINS.items() for name in names}


def moved(module: str, name: str) -> Any:
    """The object `name` of a plugin, for a module of the core that has no such name.

    **Raises:** `MissingLibraryError` that names the extra, if the plugin is not installed;
    `AttributeError` if no plugin has the name.
    """
    if name not in NAMES:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    package = NAMES[name]
    with imported_for(f"{module}.{name}", _PLUGINS[package][0], package):
        return getattr(importlib.import_module(package), name)


def installed_names() -> set[str]:
    """The names whose plugins are installed."""
    installed = {package for package in _PLUGINS if any(metadata.distributions(name=package))}
    return {name for name, package in NAMES.items() if package in installed}


def exported(namespace: dict[str, Any]) -> list[str]:
    """The public names of a module of imports. An import hook may have added modules."""
    public = (name for name in namespace if not name.startswith("_"))
    return [name for name in public if not inspect.ismodule(namespace[name])]
