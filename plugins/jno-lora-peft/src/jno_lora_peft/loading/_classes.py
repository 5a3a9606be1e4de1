"""The adapter classes that hold adapters of PEFT."""

import contextlib
from collections.abc import Iterator
from typing import Any

from jno.lora import LoRAWrapper, PluginError, Registry, SelectionError
from jno.lora.extending import show_path

from .._errors import MisfitError
from ..model.layouts import layout_of
from ..types import METHODS


def adapter_class(registry: Registry, variant: str, layer: Any, path: str) -> type[LoRAWrapper]:
    """The class of a variant that fits the layer at `path`.

    **Raises:** `MisfitError` if none fits; `PluginError` if a plugin is missing.
    """
    reasons: list[str] = []
    for cls in _classes(registry, variant):
        if cls.applies_to(layer):
            return cls
        reasons += filter(None, [cls.why_not(layer)])
    layout = layout_of(layer)
    if not reasons and layout is not None and layout.kind == "embedding":
        raise PluginError(
            f"No adapter for the {type(layer).__name__} at {show_path(path)!r} is installed. "
            "Install them with\n    pip install jno-lora-embedding"
        )
    raise MisfitError(
        f"no adapter of the variant {variant!r} fits its {type(layer).__name__}"
        f"{': ' if reasons else ''}{'; '.join(reasons[:1])}"
    )


def _classes(registry: Registry, variant: str) -> Iterator[type[LoRAWrapper]]:
    """The classes of a variant. A plugin is loaded only when the classes before do not fit."""
    method = METHODS[variant].__name__
    yield from (registry.zoo_class(f"{method}{kind}") for kind in ("Linear", "Conv"))
    with contextlib.suppress(PluginError):
        yield registry.provided("jno-lora-embedding", f"{method}Embedding").cls
    yield from registry.resolve(variant)
    with contextlib.suppress(SelectionError):
        yield from registry.resolve(f"{variant}-embedding")
